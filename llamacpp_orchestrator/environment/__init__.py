"""The Python environment of upstream's scripts: requirements, interpreter, indexes, wheels."""
