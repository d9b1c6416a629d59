"""This machine: settings, host, processes, the sandbox, the scheduler."""
