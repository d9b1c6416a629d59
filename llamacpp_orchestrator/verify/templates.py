"""Comparison of chat templates in use: as the tag's own program renders the output's, and transformers the source's."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.system import interpreter
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system import sandbox
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.command import tool_env
from llamacpp_orchestrator.util.findings import Findings
from llamacpp_orchestrator.verify import load
from llamacpp_orchestrator.verify.tokenizer import TEMPLATE
from llamacpp_orchestrator.verify.tokenizer import Words

USER = "What is the capital of France?"
# What each of llama.cpp's chat programs renders while it starts (common/chat.cpp, common_chat_format_example).
EXAMPLE = [
    {"role": "system", "content": "You are a helpful assistant"},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi there"},
    {"role": "user", "content": "How are you?"},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
ASKING = [{"role": "user", "content": "What is the weather in Paris?"}]
# What the program writes with -v, each line perhaps with a time and a letter before it (tools/completion/completion.cpp).
STARTED = re.compile(r"chat template example:\n(.*?)\n(?:[\d.]+ \w )?\n(?:[\d.]+ \w )?system_info: ", re.DOTALL)
PROMPT = re.compile(r'prompt: "(.*?)"\n(?:[\d.]+ \w )?tokens: \[', re.DOTALL)
REFUSED = re.compile(r"While executing \w+ at (line \d+, column \d+).*?\nError: ([^\n]*)", re.DOTALL)
THROWN = re.compile(r"what\(\):\s*([^\n]*)")
# By a word of a form's name: what it means when llama.cpp renders a template in it, and transformers does not.
FORMS = {
    "merged": "its chat template has no place for a system's message, which llama.cpp puts before the user's",
    "thinking": "llama.cpp lets its chat template think (`enable_thinking`), transformers only where it is asked to",
    "dated": "llama.cpp tells its chat template today's date (`date_string`), transformers does not",
    "all": "llama.cpp tells its chat template today's date (`date_string`), transformers does not",
    "parts": "its chat template knows contents as lists of parts only, which llama.cpp makes of them",
}
NEEDED = ("--jinja", "--single-turn", "--chat-template-file")
ANOTHER = (
    "put another template into the source's chat_template.jinja, or take the tag that the model's page names; "
    "`verify: content` does without this check"
)


class Talk(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation: by which name it is told, and what llama.cpp made of it."""

    name: str
    messages: list[dict[str, str]]
    text: str = ""
    error: str = ""
    tools: list[Any] | None = None
    template: str = ""


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """The result of transformers for a conversation given in one form: a text, or an error."""

    form: str
    text: str | None = None
    error: str = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of inside/templates.py: every conversation in every form, and the tokens of begin and end."""

    unable: str = ""
    begin: str = ""
    end: str = ""
    talks: list[list[Form]] = []


def command(tool: Path, model: Path, more: Sequence[str], help_text: str) -> Command:
    """The call that loads a model, renders and says what it rendered, and makes no token."""
    words = ["-m", str(model), "--jinja", "--single-turn", *more, "-n", "0", "-c", "64", "-ngl", "0", "-v"]
    words += ["--no-warmup"] if "--no-warmup" in help_text else []
    return Command((str(tool), *words), cwd=str(model.parent), env=tool_env(tool))


def with_tools(template: str) -> str:
    """A template that talks about a tool, whatever it is given: the program has no option for one."""
    given = {"messages": ASKING, "tools": TOOLS, "add_generation_prompt": True}
    # What is JSON is a value of a template, too.
    return "".join(f"{{%- set {name} = {json.dumps(value)} -%}}" for name, value in given.items()) + template


def compare(talk: Talk, forms: Sequence[Form], begin: str, end: str) -> Findings:
    """Compare a rendered conversation with what the source's template makes of it; a match in another form is a note."""
    if talk.error:
        rendered = any(form.text is not None for form in forms)
        return Findings(notes=(f"with a tool, {talk.error}",) if rendered else ())
    mine = _bare(talk.text, begin, end)
    same = next((form for form in forms if form.text is not None and _bare(form.text, begin, end) == mine), None)
    if same is not None:
        return Findings(notes=(_note_of(same.form),) if same.form else ())
    first, later = forms[0], forms[1]
    if first.text is None or first.text != later.text:
        return Findings()
    line = f"llama.cpp renders {talk.name} otherwise than transformers: {_difference(mine, _bare(first.text, begin, end))}"
    return Findings(notes=(line,)) if talk.tools else Findings(failures=(line,))


def _note_of(form: str) -> str:
    """The note on a form that fits; the first of those in FORMS."""
    return next(note for word, note in FORMS.items() if word in form)


def _bare(text: str, begin: str, end: str) -> str:
    """A prompt without begin and end, which llama.cpp leaves to the tokenizer, and with plain line ends."""
    return text.replace("\r\n", "\n").removeprefix(begin).removesuffix(end)


def _difference(mine: str, theirs: str) -> str:
    pairs = zip(mine, theirs, strict=False)
    at = next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(mine), len(theirs)))
    return f"from letter {at}, {mine[at : at + 30]!r} instead of {theirs[at : at + 30]!r}"


def check(checked: Words, find: Callable[[str], Path]) -> Findings:
    """Render conversations with the tag's program and with transformers; IntegrityError where a template stops the program."""
    template = checked.metadata.get(TEMPLATE)
    if not isinstance(template, str):
        return Findings()
    tool = load.program("", find)
    help_text = load.help_of(tool)
    if not all(word in help_text for word in NEEDED):
        return Findings(notes=(f"this tag's {tool.stem} does not render a model's own chat template, so it was not compared",))
    begun = time.time()
    try:
        talks = list(_talks(checked, tool, help_text, template))
        conversations = [{"messages": talk.messages, "tools": talk.tools, "template": talk.template} for talk in talks]
        question = {"view": str(checked.translated), "template": template, "talks": conversations, "when": begun}
        answer = interpreter.ask(checked.interpreter, "templates", question, Answer, (checked.translated,)) if talks else Answer()
    except CommandFailed as error:
        return Findings(notes=(f"its chat template was not compared, as {error.message.splitlines()[0]}",))
    if not talks:
        return Findings(notes=(f"{tool.stem} does not show what it makes of the chat template, so it was not compared",))
    if answer.unable:
        return Findings(notes=(f"transformers cannot read the source, so its chat template was not compared: {answer.unable}",))
    findings = sum(
        (compare(talk, forms, answer.begin, answer.end) for talk, forms in zip(talks, answer.talks, strict=True)), Findings()
    )
    return Findings(failures=findings.failures, notes=tuple(dict.fromkeys(findings.notes)))


def _talks(checked: Words, tool: Path, help_text: str, template: str) -> Iterator[Talk]:
    """Conversations as the program renders them: while it starts (a system speaks first), for a user alone, with a tool."""
    out = _render(checked, tool, ("-p", USER), help_text)
    for name, pattern, messages in (
        ("several turns", STARTED, EXAMPLE),
        ("a user's message", PROMPT, [{"role": "user", "content": USER}]),
    ):
        if prompt := pattern.search(out):
            yield Talk(name=name, messages=messages, text=prompt[1])
    if "tools" not in template:
        return
    file = checked.interpreter.scratch / "template.jinja"
    file.write_text(with_tools(template), encoding="utf-8", newline="")
    try:
        prompt = PROMPT.search(_render(checked, tool, ("--chat-template-file", str(file), "-p", USER), help_text))
    except OrchestrateError as error:
        yield Talk(name="a tool", messages=ASKING, error=error.message, tools=TOOLS, template=with_tools(template))
        return
    finally:
        file.unlink(missing_ok=True)
    if prompt:
        yield Talk(name="a tool", messages=ASKING, text=prompt[1], tools=TOOLS, template=with_tools(template))


def _render(checked: Words, tool: Path, more: Sequence[str], help_text: str) -> str:
    log = checked.log
    begin = log.stat().st_size if log.exists() else 0
    try:
        call = sandbox.around(command(tool, checked.files[0], more, help_text), checked.interpreter.limits)
        process.stream(call, log, limit=load.limit(checked.files, ()))
    except CommandFailed as error:
        # A prompt that is longer than the least memory for tokens is rendered all the same.
        if not PROMPT.search(out := _since(log, begin)):
            raise refused(error, out, checked.files[0].name) from error
    return _since(log, begin)


def _since(log: Path, begin: int) -> str:
    return log.read_bytes()[begin:].decode(errors="replace").replace("\r\n", "\n") if log.exists() else ""


def refused(error: CommandFailed, out: str, name: str) -> OrchestrateError:
    """A program's end while it rendered: where in the template, and why; the same error where the template is not to blame."""
    place, thrown = REFUSED.search(out), THROWN.search(out)
    if not place and not thrown and error.code not in load.ABORTED:
        return error
    why = f"{place[2].strip()} ({place[1]})" if place else thrown[1] if thrown else error.message
    message = f"llama.cpp cannot render the chat template of {name}, so that its server does not start: {why}"
    return IntegrityError(message, ANOTHER, error.log)
