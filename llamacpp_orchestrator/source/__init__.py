"""The converter tree of a tag: two routes (git, package index) with the same two functions."""
