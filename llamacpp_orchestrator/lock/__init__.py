"""The lock: its records, the file, what has changed since, and how a job is resolved to one."""
