"""Package indexes: what uv is told of them."""

from __future__ import annotations

from pathlib import Path

from llamacpp_orchestrator.environment import indexes
from llamacpp_orchestrator.system.settings import Index
from llamacpp_orchestrator.system.settings import Settings


def test_index_settings_reach_uv_in_its_environment_only() -> None:
    index = Index(
        index_urls=("https://u:p@example.org/simple",), extra_index_urls=("https://b",), find_links=("/wheels",), cert="/ca.pem"
    )
    environ = {"UV_INDEX_URL": "https://old", "UV_CACHE_DIR": "/c", "HTTPS_PROXY": "http://proxy", "HF_TOKEN": "secret"}
    assert indexes.index_variables(index, "https://torch/cpu", environ) == {
        "UV_CACHE_DIR": "/c",
        "HTTPS_PROXY": "http://proxy",
        "UV_DEFAULT_INDEX": "https://u:p@example.org/simple",
        "UV_INDEX": "https://u:p@example.org/simple https://torch/cpu https://b",
        "UV_FIND_LINKS": "/wheels",
        "SSL_CERT_FILE": "/ca.pem",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }
    assert indexes.torch_indexes("upstream", Settings(cache=Path("c"), index=index)) == ()
    assert indexes.torch_indexes("cu128", Settings(cache=Path("c"), torch_index=("https://t",), index=index)) == (
        "https://t/cu128",
    )


def test_find_links_folders(tmp_path: Path) -> None:
    (tmp_path / "a.whl").touch()
    assert indexes.find_links_paths([str(tmp_path), tmp_path.as_uri(), "https://example.org/page"]) == [tmp_path / "a.whl"] * 2
