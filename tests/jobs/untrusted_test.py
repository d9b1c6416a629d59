"""Nothing in a model's folder is trusted: not its names, not where they lead, not what its texts would do to a terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamacpp_orchestrator import console
from llamacpp_orchestrator import errors
from llamacpp_orchestrator.convert import preflight
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.job import fields
from llamacpp_orchestrator.models import adapter
from llamacpp_orchestrator.models import remote_code
from llamacpp_orchestrator.models import selection
from llamacpp_orchestrator.models import weight_files
from llamacpp_orchestrator.system.scheduler import Event
from tests.support import makers
from tests.support.adapters import BASE
from tests.support.adapters import CONFIG
from tests.support.adapters import TENSORS

# Clears the screen, sets a title, begins a sequence in one byte, turns the direction, breaks the line, is half a letter.
HOSTILE = "a\x1b[2Jb\x1b]0;title\x07c\x9b31md\u202ee\u2028f\rg\udc80h\x7f[/red]"
FORBIDDEN = set("\x1b\x07\x9b\u202e\u2028\r\udc80\x7f")
SAYING: dict[str, Callable[[], None]] = {
    "an error": lambda: console.complain(OrchestrateError(HOSTILE, HOSTILE, Path(HOSTILE)), console.Voice()),
    "a result": lambda: console.result(None, [HOSTILE]),
    "JSON": lambda: console.result({HOSTILE: HOSTILE}, (), as_json=True),
    "a line": lambda: console.say(HOSTILE, console.Voice()),
    "a note": lambda: console.plain(console.Voice(), Event(step=HOSTILE, status="note", text=HOSTILE)),
    "progress": lambda: console.plain(console.Voice(verbose=True), Event(step=HOSTILE, status="progress", text=HOSTILE)),
    "a failure": lambda: console.plain(console.Voice(), Event(step=HOSTILE, status="failed", text=HOSTILE)),
}


@pytest.mark.parametrize("way", SAYING)
def test_no_text_speaks_to_the_terminal(way: str, capsys: pytest.CaptureFixture[str]) -> None:
    SAYING[way]()
    said = "".join(capsys.readouterr())
    assert said and not FORBIDDEN & set(said) and "[2J" in said and "[/red]" in said
    if way == "JSON":
        assert json.loads(said) == {HOSTILE: HOSTILE}


def test_no_text_speaks_to_a_live_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with console.reporting(console.Voice(live=True)) as show:
        for status in ("started", "progress", "note", "failed"):
            show(Event(step=HOSTILE, status=status, text=HOSTILE))
    said = "".join(capsys.readouterr())
    assert said.count("[/red]") >= 2 and not FORBIDDEN - {"\x1b", "\r"} & set(said) and "\x1b[2J" not in said


def test_what_is_told_of_a_stranger_is_one_short_line() -> None:
    assert errors.quoted("plain/name") == "plain/name" and errors.quoted("é 好") == "é 好"
    assert errors.quoted("a\nhint: x\x1b") == "a\\nhint: x\\x1b"
    assert len(errors.quoted("x" * 5000)) < 250
    lines = OrchestrateError("x" * 5000, "y" * 5000).lines()
    assert len(lines) == 2 and all(len(line) < 1000 for line in lines)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a\nb.json", "could leave"),
        ("a\x1b[31m.json", "could leave"),
        ("a\x9b.json", "could leave"),
        ("a\u2028.json", "could leave"),
        ("a\udc80.json", "could leave"),
        ("../config.json", "could leave"),
        ("/nowhere/x.json", "could leave"),
        ("C:x.json", "could leave"),
        ("..\\x.json", "could leave"),
        ("con.json", "Windows cannot keep"),
        ("AUX.safetensors", "Windows cannot keep"),
        ("LPT1.model", "Windows cannot keep"),
        ("-flag.json", ""),
        ("é 好.json", ""),
        ("con.png", ""),
    ],
)
def test_names_of_files(name: str, told: str) -> None:
    if not told:
        return selection.check_names([name], "org/name")
    with pytest.raises(OrchestrateError, match=told) as caught:
        selection.check_names([name], "org/name")
    assert len("\n".join(caught.value.lines()).splitlines()) == 2


@pytest.mark.parametrize("shard", ["../model.safetensors", "/nowhere/x", "C:x", "-flag", "a\nhint: do\x1b[2J", "x" * 5000])
def test_an_index_leads_nowhere_else(shard: str, tmp_path: Path) -> None:
    (tmp_path.parent / "model.safetensors").write_bytes(b"x")
    (tmp_path / weight_files.INDEX).write_text(json.dumps({"weight_map": {"a": shard}}), encoding="utf-8")
    with pytest.raises(OrchestrateError, match="lacks 1 of 1 weight files") as caught:
        selection.check_index(tmp_path, [weight_files.INDEX, "model.safetensors"])
    assert len(caught.value.message.splitlines()) == 1 and "\x1b" not in caught.value.message


ELSEWHERE = ("../x", "..", "/nowhere", "--flag/x", "-x/y", "https://h/x", "org/na\x1b[2Jme", "org/name\nhint: x", "a/b/c", "é/x")


@pytest.mark.parametrize("said", ELSEWHERE)
@pytest.mark.parametrize("where", ["config", "readme"])
def test_a_base_that_is_no_name_on_the_hub_is_not_told(said: str, where: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\nbase_model: {said if where == 'readme' else ''}\n---\n", encoding="utf-8")
    found = preflight.declared_base(tmp_path, {"_name_or_path": said} if where == "config" else {})
    assert not found or (where == "readme" and fields.HUB_ID.fullmatch(found))


def test_a_long_front_matter_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_text("---\n" + "x: y\n" * 20 + "base_model: org/name\n---\n", encoding="utf-8")
    assert preflight.declared_base(tmp_path, {}) == "org/name"
    monkeypatch.setattr(preflight, "LONGEST_FRONT", 100)
    assert preflight.declared_base(tmp_path, {}) == ""


@pytest.mark.parametrize("said", [*ELSEWHERE, "x" * 5000, {"a": "b"}, ["\x1b"]])
@pytest.mark.parametrize("key", ["base_model_name_or_path", "peft_type", "init_lora_weights"])
def test_what_an_adapter_names_is_only_told(key: str, said: Any, tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(makers.safetensors(json.dumps(TENSORS).encode(), bytes(256)))
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG | {key: said}), encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps(BASE | {"hidden_size": 16}), encoding="utf-8")
    with pytest.raises(OrchestrateError) as caught:
        adapter.check(tmp_path, tmp_path, "mine", "org/base")
    told = "\n".join(caught.value.lines())
    assert len(told.splitlines()) == 2 and len(told) < 1500 and "\x1b" not in told


@pytest.mark.parametrize("said", [{"AutoTokenizer": "org/other--x.Y"}, {"AutoTokenizer": ["a", None]}, "x.Y", ["x"], {"a": {}}])
def test_code_of_another_repository_needs_permission(said: Any) -> None:
    with pytest.raises(OrchestrateError, match="wants to run Python code") as caught:
        remote_code.check_remote_code({"auto_map": said}, "org/name")
    assert "trust_remote_code: true" in caught.value.hint
