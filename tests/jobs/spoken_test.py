"""Tokens and chat templates in use: a real conversion, the tag's own programs, and what each thing does that is broken."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamacpp_orchestrator.binaries import install
from llamacpp_orchestrator.convert import warm_worker
from llamacpp_orchestrator.system import interpreter
from llamacpp_orchestrator.system.command import script_env
from llamacpp_orchestrator.system.interpreter import Interpreter
from llamacpp_orchestrator.util.findings import Findings
from llamacpp_orchestrator.verify import gguf
from llamacpp_orchestrator.verify import pieces
from llamacpp_orchestrator.verify import templates
from llamacpp_orchestrator.verify import tokenizer
from llamacpp_orchestrator.verify import tokens
from tests.support import ROOT
from tests.support.answer import Answer
from tests.support.makers import edit

Orchestrate = Callable[..., Answer]
Job = Callable[..., Path]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def find(shared_cache: Path, built: dict[str, Any]) -> Callable[[str], Path]:
    """A program out of those that were built."""
    return lambda name: install.find_tool(shared_cache / "builds", name, "linux")


@pytest.fixture
def checked(world: Path, python: Path) -> Callable[[Path, Path], tokenizer.Words]:
    """An output and its source as the checks get them."""

    def make(file: Path, view: Path) -> tokenizer.Words:
        env = script_env(world / "home")
        by = Interpreter(python=str(python), run=warm_worker.run_alone, env=env, scratch=world, log=world / "ask.log")
        metadata = gguf.contents([file]).metadata
        return tokenizer.Words(
            files=(file,), metadata=metadata, view=view, translated=view, interpreter=by, log=world / "use.log"
        )

    return make


@pytest.fixture
def converted(orchestrate: Orchestrate, job: Job, world: Path, built: dict[str, Any]) -> Callable[[Path], Path]:
    """A model's GGUF, converted and checked by loading it."""

    def make(model: Path) -> Path:
        file = job({"source": str(model), "outtype": "f16", "verify": "load"}, binaries=built)
        answer = orchestrate("run", file)
        assert answer.code == 0, answer.err
        return world / "dist" / f"{model.name}-f16.gguf"

    return make


@pytest.mark.slow
def test_a_tokenizer_and_a_template_are_proven_by_use_and_what_is_broken_is_found(
    converted: Callable[[Path], Path],
    checked: Callable[[Path, Path], tokenizer.Words],
    find: Callable[[str], Path],
    copy: Callable[..., Path],
    world: Path,
) -> None:
    model = copy("tiny-llama")
    edit(model / "tokenizer_config.json", chat_template=TEMPLATE)
    file = converted(model)
    receipt = json.loads((world / "dist" / f"{file.name}.receipt.json").read_text(encoding="utf-8"))
    assert receipt["levels"] == ["structure", "content", "load"] and not receipt["notes"]
    asked = checked(file, model)
    assert tokens.check(asked, find) == Findings() == templates.check(asked, find)
    assert _content(asked) == Findings()
    # 300 cuts of real text, in one piece.
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "README.md", ROOT / "README.zh-CN.md", ROOT / "Makefile"))
    chance = random.Random(1)
    cuts = [text[at : at + chance.randint(1, 200)] for at in (chance.randrange(len(text)) for _ in range(300))]
    question = _question(model, [" | ".join(cuts).replace("\\", "/")])
    said = interpreter.ask(asked.interpreter, tokens.SCRIPT, question, tokens.Source, (model,))
    have = tokens.cut(asked, find(tokens.TOOL), " | ".join(cuts).replace("\\", "/"))
    assert tokens.around(have, said.plain[0]) == ([1], [])
    # The source of another letter, begin or template is not the source of this file.
    _break_merge(model)
    assert tokens.check(asked, find).failures
    (model / "tokenizer.json").unlink()
    other = {**asked.metadata, tokenizer.TEMPLATE: TEMPLATE.replace("[assistant]", "[bot]")}
    lied = tokenizer.Words(**{name: getattr(asked, name) for name in asked.__struct_fields__} | {"metadata": other})
    assert "otherwise than transformers" in templates.check(lied, find).failures[0]
    assert tokens.check(asked, _without).notes == ("the tag's programs have no llama-tokenize, so its tokens were not compared",)


def test_a_template_that_no_server_can_render_is_told_with_its_place(
    orchestrate: Orchestrate, job: Job, copy: Callable[..., Path], built: dict[str, Any]
) -> None:
    model = copy("tiny-llama")
    edit(model / "tokenizer_config.json", chat_template="{{ bos_token }}{% for m in messages %}{{ m.content.foo() }}{% endfor %}")
    answer = orchestrate("run", job({"source": str(model), "outtype": "f16", "verify": "load"}, binaries=built))
    assert answer.code == 1
    assert "cannot render the chat template" in answer.err and "line 1, column 55" in " ".join(answer.err.split())


def _question(view: Path, texts: list[str]) -> dict[str, Any]:
    return {"view": str(view), "shown": str(view), "texts": texts, "pieces": False}


def _content(asked: tokenizer.Words) -> Findings:
    question = {"view": str(asked.view), "texts": [], "pieces": True}
    held = interpreter.ask(asked.interpreter, tokens.SCRIPT, question, dict[str, Any], (asked.view,))["pieces"]
    made = pieces.Pieces(**{name: tuple(value) if isinstance(value, list) else value for name, value in held.items()})
    return pieces.compare(tokenizer.read(asked.view), asked.metadata, made)


def _break_merge(model: Path) -> None:
    """Give a model a tokenizer.json that knows its letters and no longer word."""
    letters = {chr(number): number for number in range(32, 127)} | {"<unk>": 0}
    said = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "unk_token": "<unk>", "vocab": letters, "merges": []}}
    (model / "tokenizer.json").write_text(json.dumps(said), encoding="utf-8")


def _without(name: str) -> Path:
    from llamacpp_orchestrator.errors import OrchestrateError

    raise OrchestrateError(f"the archive has no program `{name}`")
