"""Kills, full disks and cut networks: whatever happens to a run, the next one ends well, with the same bytes."""
