"""Chat templates as a tag's own program renders them: the call, what it writes, and what a difference means."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.util.findings import Findings
from llamacpp_orchestrator.verify import templates
from llamacpp_orchestrator.verify.templates import Form
from llamacpp_orchestrator.verify.templates import Talk

# As llama-completion of b11434 writes them, and an older program without times.
NEW = """\
0.00.194.313 I llama_completion: chat template example:
<|im_start|>user
Hello "you"<|im_end|>

0.00.194.321 I $
0.00.194.383 I system_info: n_threads = 2
0.00.229.612 D prompt: "<|im_start|>user
Hello<|im_end|>
"
0.00.229.640 D tokens: [ '<s>':1 ]
""".replace("$", "")
OLD = "main: chat template example:\nHello\n\nsystem_info: n_threads = 2\nprompt: \"Hello\"\ntokens: [ 'H':1 ]\n"
THROWN = """\
terminate called after throwing an instance of 'std::invalid_argument'
  what():  Unable to generate parser for this template. Automatic parser generation failed:
------------
While executing CallExpression at line 1, column 62 in source:
...messages|length > 1 %}{{ raise_exception("only one") }}{% endif %}{{ messages[0]...
                                           ^
Error: Jinja Exception: only one
"""
TALK = Talk(name="several turns", messages=[], text="<s>Hello")
TOOL = Talk(name="a tool", messages=[], text="<s>Hello", tools=[{}])


def test_the_call_makes_no_token_and_says_all() -> None:
    asked = templates.command(Path("llama-completion"), Path("/o/a.gguf"), ("-p", "x"), "--no-warmup")
    assert " ".join(asked.argv[2:]).endswith("--jinja --single-turn -p x -n 0 -c 64 -ngl 0 -v --no-warmup")
    assert "--no-warmup" not in templates.command(Path("llama-cli"), Path("a"), (), "").argv


@pytest.mark.parametrize(
    ("out", "example", "prompt"),
    [(NEW, '<|im_start|>user\nHello "you"<|im_end|>\n', "<|im_start|>user\nHello<|im_end|>\n"), (OLD, "Hello", "Hello")],
)
def test_what_a_program_writes(out: str, example: str, prompt: str) -> None:
    started, asked = templates.STARTED.search(out), templates.PROMPT.search(out)
    assert started and asked and (started[1], asked[1]) == (example, prompt)


def test_a_template_is_given_a_tool() -> None:
    made = templates.with_tools("{{ messages }}")
    assert made.startswith('{%- set messages = [{"role": "user"') and made.endswith("{{ messages }}")
    assert '"name": "weather"' in made and "{%- set add_generation_prompt = true -%}" in made


@pytest.mark.parametrize(
    ("forms", "failure", "note"),
    [
        ([("", "<s>Hello"), ("", "<s>Hello")], "", ""),
        ([("", "Hello</s>"), ("", "Hello</s>")], "", ""),
        ([("", "Bye"), ("", "Bye"), ("thinking", "<s>Hello")], "", "llama.cpp lets its chat template think"),
        ([("", "Bye"), ("", "Bye"), ("dated", "<s>Hello")], "", "llama.cpp tells its chat template today's date"),
        ([("", "Bye"), ("", "Bye"), ("parts", "<s>Hello")], "", "its chat template knows contents as lists of parts only"),
        ([("", None), ("", None), ("merged", "<s>Hello")], "", "its chat template has no place for a system's message"),
        # It tells the second, or cannot say anything of that: nothing to compare with.
        ([("", "12:00:01"), ("", "12:00:02")], "", ""),
        ([("", None), ("", None)], "", ""),
        ([("", "<s>Hallo"), ("", "<s>Hallo")], "renders several turns otherwise than transformers: from letter 1, 'ello'", ""),
    ],
)
def test_what_is_rendered(forms: list[tuple[str, str | None]], failure: str, note: str) -> None:
    made = [Form(form=form, text=text) for form, text in forms]
    found = templates.compare(TALK, made, "<s>", "</s>")
    assert (len(found.failures), len(found.notes)) == (bool(failure), bool(note))
    assert failure in "".join(found.failures) and note in "".join(found.notes)


def test_what_only_tools_make_other_is_a_note() -> None:
    other = [Form(form="", text="Bye")] * 2
    assert templates.compare(TOOL, other, "", "").notes[0].startswith("llama.cpp renders a tool otherwise")
    refused = Talk(name="a tool", messages=[], error="llama.cpp cannot render it", tools=[{}])
    assert templates.compare(refused, other, "", "").notes == ("with a tool, llama.cpp cannot render it",)
    assert templates.compare(refused, [Form(form="", error="no tools")] * 2, "", "") == Findings()


@pytest.mark.parametrize(
    ("code", "out", "why"),
    [
        (134, THROWN, "its server does not start: Jinja Exception: only one (line 1, column 62)"),
        (134, "  what():  Expected endfor\n", "its server does not start: Expected endfor"),
        (3, "", "its server does not start: `llama-completion` ended"),
        (1, "error: unknown argument", None),
    ],
)
def test_who_is_to_blame(code: int, out: str, why: str | None) -> None:
    error = CommandFailed("`llama-completion` ended", code=code)
    found = templates.refused(error, out, "a.gguf")
    assert found is error if why is None else isinstance(found, IntegrityError) and why in found.message
