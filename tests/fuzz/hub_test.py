"""What a hub, or whatever stands in its place, says of a repository."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from llamacpp_orchestrator.models import hub
from tests.fuzz.common import fuzzed
from tests.fuzz.common import json_text
from tests.fuzz.common import reading
from tests.fuzz.server import saying
from tests.fuzz.server import settings

COMMIT = "1" * 40
INFO: dict[str, Any] = {"id": "org/name", "sha": COMMIT, "siblings": [{"rfilename": "config.json"}], "gated": False}
TREE: list[dict[str, Any]] = [
    {"type": "directory", "path": "sub", "oid": "0" * 40},
    {"type": "file", "path": "config.json", "size": 2, "oid": "2" * 40},
    {
        "type": "file",
        "path": "model.safetensors",
        "size": 5,
        "oid": "3" * 40,
        "lfs": {"oid": "4" * 64, "size": 5, "pointerSize": 134},
    },
]


@fuzzed(st.tuples(json_text(INFO), json_text(TREE)))
def test_listings(said: tuple[bytes, bytes]) -> None:
    info, tree = said
    asked: dict[str, Any] = {"kind": "model", "weights": True, "remote_code": False}
    with saying(**{"/api/models/org/name/revision": (info, {}), "/api/models/org/name/tree": (tree, {})}) as there:
        here = settings(there.url)
        found = reading(lambda: hub.list_hub("org/name", "main", here, print, **asked))
    for file in found.files if found else ():
        assert type(file.size) is int and file.size >= 0 and isinstance(file.path, str)
        assert len(file.sha256) == 64 or len(file.oid) == 40
