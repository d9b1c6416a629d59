"""Where the user's token for the hub may go: to endpoints that are trusted, and never to where these only point."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

_trusted: set[str] = set()  # of the endpoints asked so far


def guard(session: Any, endpoint: str) -> None:
    """Let the library's session send a token to an endpoint, "" for none, and to no other place than such."""
    _trusted.update([_origin(endpoint)] if endpoint else [])
    hooks = session.event_hooks
    if _strip not in hooks["request"]:
        session.event_hooks = {**hooks, "request": [*hooks["request"], _strip]}


def _strip(request: Any) -> None:
    # The library follows the address of a listing's next page with all that it sent to the first.
    if _origin(str(request.url)) not in _trusted:
        request.headers.pop("Authorization", None)


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}".lower()
