"""`make fuzz`: every target for its share of some minutes, with new examples each time; what fails is kept and tried first."""

from __future__ import annotations

import importlib
import os
import sys
import time
import traceback
from pathlib import Path

from hypothesis import given

from tests.fuzz.common import LONG
from tests.fuzz.common import TARGETS
from tests.fuzz.common import Target

MINUTES = "ORCHESTRATE_FUZZ_MINUTES"


def main(words: list[str]) -> int:
    """Fuzz the targets whose names hold one of the words, or all; 1 when one of them fails."""
    for path in sorted(Path(__file__).parent.glob("*_test.py")):
        importlib.import_module(f"tests.fuzz.{path.stem}")
    chosen = [target for target in TARGETS if not words or any(word in target.name for word in words)]
    share = 60 * float(os.environ.get(MINUTES) or 10) / max(1, len(chosen))
    failed = [target.name for target in chosen if not _fuzz(target, share)]
    return int(bool(failed))


def _fuzz(target: Target, seconds: float) -> bool:
    """Try one target until its time is up, and say how many examples that came to."""
    began, count, failed = time.monotonic(), 0, False

    def counted(said: object) -> None:
        nonlocal count, failed
        # The generator has no limit of time: what comes too late passes, unless it is to make a failure smaller.
        if failed or time.monotonic() - began < seconds:
            count += 1
            try:
                target.test(said)
            except BaseException:
                failed = True
                raise

    try:
        while time.monotonic() - began < seconds:
            LONG(given(target.inputs)(counted))()
    except Exception:
        traceback.print_exc()
        print(f"FAILED   {target.name}: after {count} examples", flush=True)
        return False
    print(f"{count:>8} {target.name}", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
