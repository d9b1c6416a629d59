"""Ends what a killed driver leaves behind: reads "+GROUP" and "-GROUP" lines, and kills the groups still known at their end.

The driver holds the other end of standard input. However it dies, that end closes; so this needs no signal and no look at
any process table. It must be light: the standard library alone, and nothing of `site`.
"""

import os
import signal
import sys


def left(lines):
    """The groups that began and have not ended."""
    groups = set()
    for line in lines:
        (groups.add if line.startswith(b"+") else groups.discard)(int(line[1:]))
    return groups


def main():
    # Whatever asks the driver to go may ask us, too; but ours is to be the last.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for group in left(sys.stdin.buffer):
        try:  # noqa: SIM105 - what suppresses would take longer to load than all of this
            os.killpg(group, signal.SIGKILL)
        except OSError:
            pass


if __name__ == "__main__":
    main()
