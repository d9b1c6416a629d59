"""One command of the driver, run as the console script runs it, and then what its own process has used: FILE ARGUMENTS..."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from llamacpp_orchestrator.__main__ import main


def peak() -> int:
    """The most memory that was resident, in bytes. Linux counts that of the parent before `exec` in, but for VmHWM."""
    status = Path("/proc/self/status")
    if status.exists():
        said = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(said.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    code = main(sys.argv[2:])
    used = resource.getrusage(resource.RUSAGE_SELF)
    Path(sys.argv[1]).write_text(json.dumps({"cpu": used.ru_utime + used.ru_stime, "peak": peak()}), encoding="utf-8")
    sys.exit(code)
