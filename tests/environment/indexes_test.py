"""Package indexes: what uv is told of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamacpp_orchestrator.environment import indexes
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.system.settings import Index
from llamacpp_orchestrator.system.settings import Settings


def test_index_settings_reach_uv_in_its_environment_only() -> None:
    index = Index(index_urls=("https://u:p@example.org/simple",), extra_index_urls=("https://b",), find_links=("/wheels",))
    environ = {"UV_INDEX_URL": "https://old", "UV_CACHE_DIR": "/c", "HTTPS_PROXY": "http://proxy", "HF_TOKEN": "secret"}
    # What would change what an environment is, or how it is laid out, is not passed on.
    changing = "LINK_MODE PYTHON CONSTRAINT OVERRIDE NO_BINARY RESOLUTION PRERELEASE TARGET PREFIX SYSTEM_PYTHON TORCH_BACKEND"
    environ |= {f"UV_{name}": "x" for name in changing.split()}
    assert indexes.index_variables(index, "https://torch/cpu", environ) == {
        "UV_CACHE_DIR": "/c",
        "HTTPS_PROXY": "http://proxy",
        "UV_DEFAULT_INDEX": "https://u:p@example.org/simple",
        "UV_INDEX": "https://u:p@example.org/simple https://torch/cpu https://b",
        "UV_FIND_LINKS": "/wheels",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }
    assert indexes.torch_indexes("upstream", Settings(cache=Path("c"), index=index)) == ()
    assert indexes.torch_indexes("cu128", Settings(cache=Path("c"), torch_index=("https://t",), index=index)) == (
        "https://t/cu128",
    )


def test_find_links_folders(tmp_path: Path) -> None:
    (tmp_path / "a.whl").touch()
    assert indexes.find_links_paths([str(tmp_path), tmp_path.as_uri(), "https://example.org/page"]) == [tmp_path / "a.whl"] * 2


@pytest.mark.parametrize(
    ("said", "message", "hint"),
    [
        (
            "error: No solution found\n  cause: Because transformers was not found in the package registry and you require "
            "transformers\n\nhint: An index (https://u:****@a.example/simple) returned a 403 Forbidden error. Check that",
            "https://a.example/simple refuses uv (403)",
            "may this machine",
        ),
        (
            "hint: An index URL (https://a.example/simple) could not be queried due to a lack of valid credentials "
            "(401 Unauthorized)",
            "https://a.example/simple refuses uv (401)",
            "login",
        ),
        ("error: invalid peer certificate: UnknownIssuer", "invalid peer certificate", "SSL_CERT_FILE"),
        ("error: something else", "something else", "do it"),
    ],
)
def test_a_failure_of_uv_is_told_by_its_cause(said: str, message: str, hint: str) -> None:
    error = indexes.failed(CommandFailed("uv failed", code=2, tail=said), "it was not resolved", "do it")
    assert message in error.message and hint in error.hint
