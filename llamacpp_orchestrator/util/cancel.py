"""The one stop: set once a signal has asked us to end; every loop over chunks and every wait looks at it."""

from __future__ import annotations

import signal
import threading

from llamacpp_orchestrator.errors import Stopped

STOP = threading.Event()


def look_for_stop() -> None:
    """Raise Stopped once a signal has asked us to end."""
    if STOP.is_set():
        raise Stopped(signal.SIGINT)


def wait(seconds: float) -> None:
    """Let time pass; Stopped as soon as a signal asks us to end."""
    STOP.wait(seconds)
    look_for_stop()
