"""`make bench`: what the driver costs and saves, as ratios of medians over paired runs, never as times alone."""
