"""The job file: its records, how it is read and checked, and where its outputs will lie."""
