"""What a refusal asks to wait, how long that is heeded, and what is said of it."""

from __future__ import annotations

import email.utils
import math
import re
import time

import pytest

from llamacpp_orchestrator.util import cancel


def date(seconds: float) -> str:
    """A time from now on, as HTTP writes it."""
    return email.utils.formatdate(time.time() + seconds, usegmt=True)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None), ({"Retry-After": ""}, None), ({"Retry-After": "soon"}, None), ({"Retry-After": "-5"}, None),
        ({"Retry-After": "1e9"}, None), ({"Retry-After": "٣"}, None), ({"Retry-After": "Wed, 99 Foo 2026"}, None),
        ({"Retry-After": "0"}, 0), ({"Retry-After": " 120 "}, 120), ({"Retry-After": "86400"}, 86400),
        ({"Retry-After": "9" * 400}, math.inf), ({"Retry-After": "{-3600}"}, 0), ({"Retry-After": "{60}"}, 60),
        ({"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}, 2.5e11), ({"RateLimit": '"api";r=0;t=55'}, 55),
        ({"RateLimit": '"api";r=10;t=55'}, None), ({"RateLimit": '"api";r=0;t=' + "9" * 400}, 1e300),
        ({"Retry-After": "5", "RateLimit": '"api";r=0;t=55'}, 5),
    ],
)  # fmt: skip
def test_what_a_refusal_asks_for(headers: dict[str, str], seconds: float | None) -> None:
    # A date in braces is that many seconds from now.
    headers = {name: re.sub(r"\{(.+)\}", lambda match: date(float(match[1])), text) for name, text in headers.items()}
    asked = cancel.pause(headers)
    assert asked == seconds or (asked and seconds and seconds > 30 and asked == pytest.approx(seconds, rel=0.1)), asked
    assert cancel.too_long(headers, 30.0) == bool(seconds and seconds > 30)


@pytest.mark.parametrize(
    ("after", "said"),
    [
        ("0", ", try again in 0 s"), ("20", ", try again in 20 s"),
        ("600", ", try again in 600 s (at most 30 s are waited: ORCHESTRATE_WAIT_SECONDS)"),
        ("Fri, 31 Dec 9999 23:59:59 GMT", " (at most 30 s are waited: ORCHESTRATE_WAIT_SECONDS)"),
        ("9" * 400, " (at most 30 s are waited: ORCHESTRATE_WAIT_SECONDS)"), ("soon", ""),
    ],
)  # fmt: skip
def test_when_to_try_again_is_said(after: str, said: str) -> None:
    assert cancel.until({"Retry-After": after}) == said
    later = time.strftime("%Y-%m-%d", time.gmtime(time.time() + 200_000))
    assert cancel.until({"Retry-After": "200000"}).startswith(f", try again after {later}")


def test_what_is_waited_for_is_told_and_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    waits, said = list[float](), list[str]()
    monkeypatch.setattr(cancel, "wait", waits.append)
    before = cancel.tell.set(said.append)
    try:
        left = cancel.put_off({"Retry-After": "20"}, 0.5, 30.0, "mirror.example")
        assert left == 10.0 and cancel.too_long({"Retry-After": "20"}, left)
        assert cancel.put_off({}, 0.5, left, "mirror.example") == left
        assert cancel.put_off({"Retry-After": "0"}, 0.5, left, "mirror.example") == left
    finally:
        cancel.tell.reset(before)
    assert waits == [20.0, 0.5, 0.0] and said == ["waiting 20 s, as mirror.example asks"]
