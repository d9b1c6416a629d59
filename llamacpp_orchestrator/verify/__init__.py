"""Checks of an output, by level: its format, its content, its words, its results."""
