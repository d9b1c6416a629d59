"""`python -m llamacpp_orchestrator`: the same as `orchestrate`."""

from llamacpp_orchestrator.cli import entry

if __name__ == "__main__":
    entry()
