"""The one stop, which every loop over chunks and every wait looks at; and how long servers may have us wait, and who is told."""

from __future__ import annotations

import math
import re
import signal
import threading
import time
from collections.abc import Callable
from collections.abc import Mapping
from contextvars import ContextVar

from llamacpp_orchestrator.errors import Stopped

STOP = threading.Event()
# Of the step that is at work in this thread: it says what is waited for.
tell: ContextVar[Callable[[str], None]] = ContextVar("tell", default=lambda text: None)
longest = 30.0  # seconds that one request may be put off by its server; as this machine is set
SETTING = "ORCHESTRATE_WAIT_SECONDS"
LONGEST_SHOWN = 10 * 365 * 86400.0  # seconds; what is further off is no time that anybody means
RESET = re.compile(r"\br=0\b.*?\bt=(\d+)")  # of the header RateLimit: none is left, for so many seconds


def look_for_stop() -> None:
    """Raise Stopped once a signal has asked us to end."""
    if STOP.is_set():
        raise Stopped(signal.SIGINT)


def wait(seconds: float) -> None:
    """Let time pass; Stopped as soon as a signal asks us to end."""
    STOP.wait(seconds)
    look_for_stop()


def put_off(headers: Mapping[str, str], otherwise: float, left: float, who: str) -> float:
    """Wait as a refusal asks, and tell that, or as long as we think right ourselves; the seconds that are left after it."""
    seconds = pause(headers)
    if seconds is None:
        wait(otherwise)
        return left
    if seconds >= 1:
        tell.get()(f"waiting {seconds:.0f} s, as {who} asks")
    wait(seconds)
    return left - seconds


def too_long(headers: Mapping[str, str], left: float) -> bool:
    """Whether a refusal asks for more than the seconds that are left."""
    return (pause(headers) or 0.0) > left


def pause(headers: Mapping[str, str]) -> float | None:
    """The seconds to wait that a refusal asks for by Retry-After (a number, or a date) or RateLimit; None where by neither."""
    import email.utils  # not needed to find out that there is nothing to do

    text = headers.get("Retry-After", "").strip()
    if re.fullmatch("[0-9]+", text):
        return float(text) if len(text) < 300 else math.inf
    if spent := RESET.search(headers.get("RateLimit", "")):
        return float(spent[1][:300])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def until(headers: Mapping[str, str]) -> str:
    """What is said of a refusal that names a time: when to try again, and that this is longer than is waited; else ""."""
    if re.fullmatch("[0-9]{1,11}", reset := headers.get("X-RateLimit-Reset", "")):  # GitHub's
        return f", it resets at {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime(int(reset)))}"
    seconds = pause(headers)
    if seconds is None:
        return ""
    date = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(time.time() + seconds)) if seconds <= LONGEST_SHOWN else ""
    when = f", try again in {seconds:.0f} s" if seconds < 86400 else f", try again after {date}" if date else ""
    return f"{when} (at most {longest:.0f} s are waited: {SETTING})" if seconds > longest else when
