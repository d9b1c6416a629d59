"""Resolutions are held to a tag's time as far as an index tells times, and never end in versions that break one another."""

from __future__ import annotations

import pytest

from llamacpp_orchestrator.environment import resolution
from llamacpp_orchestrator.errors import CommandFailed

TIME = "2024-10-04T15:18:16Z"
LINES = ("numpy~=1.26.4", "sentencepiece~=0.2.0", "torch~=2.2.1", "transformers>=4.40.1,<5.0.0")
WHOLE = (f"--exclude-newer={TIME}", "--exclude-newer-package=gguf=false", "--exclude-newer-package=torch=false")
OWN = tuple(f"--exclude-newer-package={name}={TIME}" for name in ("numpy", "sentencepiece", "transformers"))


class Uv:
    """What uv answers to options and constraints; a text raises CommandFailed with it as uv's last words."""

    def __init__(self, answers: dict[tuple[tuple[str, ...], tuple[str, ...]], str]) -> None:
        self.answers, self.calls = answers, list[tuple[tuple[str, ...], tuple[str, ...]]]()

    def __call__(self, limits: tuple[str, ...], apart: tuple[str, ...]) -> str:
        self.calls.append((limits, apart))
        answer = self.answers[limits, apart]
        if "==" not in answer:
            raise CommandFailed("uv failed", code=1, tail=answer)
        return answer


def test_the_strictest_way_that_resolves_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UV_EXCLUDE_NEWER", raising=False)
    ways = resolution.ways(LINES, ("gguf==1.0", "torch==2.13.0"), TIME)
    assert [options for options, _ in ways] == [WHOLE, OWN, ()]
    none = "error: No solution found when resolving dependencies"
    for answers, calls, until in (
        ({(WHOLE, ()): "a==1"}, 1, "resolving as of 2024-10-04, the tag's time"),
        ({(WHOLE, ()): none, (OWN, ()): "a==1"}, 2, "resolving what upstream names as of 2024-10-04, and the rest as of today"),
        ({(WHOLE, ()): none, (OWN, ()): none, ((), ()): "a==1"}, 3, "resolving as of today"),
    ):
        uv, told = Uv(answers), list[str]()
        assert resolution.resolve(LINES, ("gguf==1.0", "torch==2.13.0"), TIME, uv, told.append) == "a==1"
        assert len(uv.calls) == calls and told[-1] == until


def test_what_no_time_would_mend_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UV_EXCLUDE_NEWER", raising=False)
    uv = Uv({(resolution.ways(LINES, (), TIME)[0][0], ()): "error: Failed to fetch: connection refused"})
    with pytest.raises(CommandFailed):
        resolution.resolve(LINES, (), TIME, uv, lambda text: None)
    assert len(uv.calls) == 1


def test_without_a_time_or_with_one_of_the_users_own_nothing_is_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UV_EXCLUDE_NEWER", raising=False)
    assert resolution.ways(LINES, (), "") == [((), "as of today")]
    monkeypatch.setenv("UV_EXCLUDE_NEWER", "2026-01-01")
    assert resolution.ways(LINES, (), TIME) == [((), "as of today")]


@pytest.mark.parametrize(
    ("resolved", "overrides", "apart"),
    [
        ("protobuf==4.25.9\nsentencepiece==0.2.3\n", (), ("sentencepiece<0.2.3",)),
        ("protobuf==6.33.5 \\\n    --hash=sha256:0\nsentencepiece==0.2.4 ; python_version < '4'\n", (), ("sentencepiece<0.2.3",)),
        ("protobuf==4.25.9\nsentencepiece==0.2.2\n", (), ()),
        ("protobuf==7.36.1\nsentencepiece==0.2.3\n", (), ()),
        ("sentencepiece==0.2.3\n", (), ()),
        ("protobuf==4.25.9\nsentencepiece==0.2.3\n", ("sentencepiece==0.2.3",), ()),
        ("protobuf==5.29.6\nsentencepiece==0.2.3\n", ("protobuf==5.29.6",), ("sentencepiece<0.2.3",)),
    ],
)
def test_versions_that_cannot_be_imported_together_are_kept_apart(
    resolved: str, overrides: tuple[str, ...], apart: tuple[str, ...]
) -> None:
    assert resolution.constraints(resolved, overrides) == apart


def test_a_pair_is_resolved_again_and_left_where_there_is_no_other_way() -> None:
    bad, good = "protobuf==4.25.9\nsentencepiece==0.2.3\n", "protobuf==4.25.9\nsentencepiece==0.2.2\n"
    for again, expected in ((good, good), ("error: No solution found", bad)):
        uv = Uv({((), ()): bad, ((), ("sentencepiece<0.2.3",)): again})
        assert resolution.resolve(LINES, (), "", uv, lambda text: None) == expected
