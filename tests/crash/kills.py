"""A run is killed, with its children or alone; the next one must end well, with the same bytes, and leave nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress

import msgspec

from tests.crash.remains import descendants
from tests.crash.remains import orphans
from tests.crash.remains import remains
from tests.crash.world import World


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """When to kill: after so many seconds, or with a line; `whole` with all children, else the driver alone."""

    seconds: float = 0.0
    line: str = ""
    whole: bool = False

    def __str__(self) -> str:
        when = f"at `{self.line.strip()}`" if self.line else f"after {self.seconds:.2f} s"
        return f"{'all' if self.whole else 'the driver'} killed {when}"


def plain(line: str) -> str:
    """A line without what differs from run to run."""
    return re.sub(r"\d+\.\d+( s)?|\d+ms", "#", line.rstrip())


def moments(lines: list[str], seconds: float, count: int) -> list[Moment]:
    """So many moments over the whole length of a run, by its lines and by the clock, each with the children and without."""
    lines = [line for line in dict.fromkeys(map(plain, lines)) if ":  + " not in line]
    by_line = [lines[int((number + 0.5) * len(lines) / (count // 2))] for number in range(count // 2)]
    by_time = [seconds * (number + 0.5) / (count - count // 2) for number in range(count - count // 2)]
    return [
        *(Moment(line=line, whole=bool(number % 2)) for number, line in enumerate(by_line)),
        *(Moment(seconds=each, whole=bool(number % 2)) for number, each in enumerate(by_time)),
    ]


def killed(world: World, moment: Moment) -> bool:
    """Begin a run and kill it at a moment; False when it had ended by then."""
    child = world.start()
    if moment.line:
        watch = threading.Thread(target=_at_line, args=(child, moment))
        watch.start()
        watch.join()
    else:
        drain = threading.Thread(target=child.stderr.read if child.stderr else None, daemon=True)
        drain.start()
        with suppress(subprocess.TimeoutExpired):
            child.wait(moment.seconds)
        if child.poll() is None:
            strike(child, moment.whole)
    code = child.wait()
    if child.stderr and moment.line:
        child.stderr.close()
    return code == -signal.SIGKILL


def _at_line(child: subprocess.Popen[str], moment: Moment) -> None:
    assert child.stderr
    for line in child.stderr:
        if plain(line) == moment.line:
            return strike(child, moment.whole)


def strike(child: subprocess.Popen[str], whole: bool) -> None:
    """Kill a driver, and where asked all that it has started, as the system does that is short of memory or goes down."""
    below = descendants(child.pid) if whole else []
    for number in (child.pid, *below):
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def survived(world: World, moment: Moment, reference: Mapping[str, str]) -> tuple[bool, list[str]]:
    """Whether a run was killed at a moment, and what is wrong after the next."""
    if not killed(world, moment):
        return False, []
    time.sleep(0.05)
    # The next run begins at once, as from a script that tries again; what is left of the first must not disturb it.
    again = world.run()
    return True, wrong(world, again.code, again.said, reference)


def wrong(world: World, code: int, said: str, reference: Mapping[str, str]) -> list[str]:
    """What is not as it must be after a run that should have ended well."""
    complaints = [f"exit {code}: {' | '.join(said.splitlines()[-4:])}"] if code else []
    sums = world.sums()
    complaints += [f"{name} has other bytes, or none" for name, digest in reference.items() if sums.get(name) != digest]
    return complaints + [f"left: {each}" for each in (*remains(world), *orphans(world.root))]
