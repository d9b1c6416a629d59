"""Scripts that the interpreter of the converter environment runs; nothing here imports the package."""
