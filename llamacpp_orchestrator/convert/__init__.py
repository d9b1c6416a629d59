"""Upstream's scripts and `llama-quantize`: command lines, what a tag can do, what is refused before, how failures read."""
