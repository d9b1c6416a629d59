"""Command lines of upstream's scripts and of llama-quantize, and the environment that they run in."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamacpp_orchestrator.convert import commands
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.system.command import script_env


def test_a_converter_knows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "PYTHONPATH", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "secret")
    given = dict(script_env(Path("/home")))
    assert "secret" not in given.values() and given["HF_HUB_OFFLINE"] == "1" and given["PYTHONUTF8"] == "1" and given["PATH"]


def test_the_quantize_command_names_its_output_and_keeps_a_split() -> None:
    model = spec.Model(source="a/b")
    asked = commands.quantize_command(Path("/b/llama-quantize"), Path("/o/a.gguf"), Path("/s/b.gguf"), "Q4_K_M", model, True)
    assert asked.argv[1:] == ("--keep-split", str(Path("/o/a.gguf")), str(Path("/s/b.gguf")), "Q4_K_M")
    assert dict(asked.env)["LD_LIBRARY_PATH"].startswith(str(Path("/b")))


def test_braces_in_a_name_are_no_parts_for_the_scripts_to_fill_in() -> None:
    outfile, view = Path("/s{0}/m{0}-{ftype}.gguf"), Path("/v/m{0}")
    model = commands.model_command("python", Path("/t"), view, outfile, "f16", "m{0}", ())
    adapter = commands.adapter_command("python", Path("/t"), view, view, outfile, "f16", ())
    for command in (model, adapter):
        word = Path(command.argv[command.argv.index("--outfile") + 1])
        assert word.parent == outfile.parent and word.name.format("f16", ftype="f16") == outfile.name
    assert str(view) in model.argv and "m{0}" in model.argv
