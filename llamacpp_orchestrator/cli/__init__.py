"""The command line: argv to keywords. Nothing is decided here that a command could decide."""
