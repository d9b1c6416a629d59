"""Comparison of tokens in use: texts cut by the tag's own `llama-tokenize`, and by the source's tokenizer."""

from __future__ import annotations

import re
from collections.abc import Callable
from collections.abc import Sequence
from pathlib import Path

import msgspec

from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.system import interpreter
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system import sandbox
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.command import tool_env
from llamacpp_orchestrator.util.findings import Findings
from llamacpp_orchestrator.verify import load
from llamacpp_orchestrator.verify.tokenizer import Words

TOOL, SCRIPT = "llama-tokenize", "tokens"
# No backslashes, which older programs take for something else; no letters in several code points, which upstream leaves as they
# are where a tokenizer puts them together; no end of a line at the end, which some drop. What is not English may be cut otherwise
# for reasons of the tag's own.
ENGLISH, OTHER = "English and code", "other languages"
TEXTS = {
    ENGLISH: (
        "Hello world! The quick brown fox jumps over the lazy dog; 'twas (so they say) a Tuesday -- or not?\n"
        "In 1865 it cost 3 pounds, 12.50 or 1,234,567 of 00042: 3.14159e-10, 0xFF, 50% of 2^16, 2024-01-31T23:59:59Z.\n"
        "I'm sure you're right, they've said it's John's; we'll see, I'd go, don't. IT'S WHAT WE'LL DO, I'M SURE.\n"
        "def add(a, b=1):\n"
        "    '''The sum.'''\n"
        "    if a != b and not (a <= 0):\n"
        "\treturn {'sum': a + b, \"x\": [y**2 for y in c]}\n"
        "\n"
        "#include <stdio.h>\n"
        "int main(void) { return p->next && !f(&q[0]) ? 1 : 0; } // done\n"
        '<div class="a-b_c">&nbsp;</div>\n'
        " a  b   c    d\te\t\tf \n"
        " g\n"
        "\n"
        "h\n"
        "\n"
        "\n"
        "i \n"
        "\n"
        " j        k"
    ),
    OTHER: (
        "我想在苹果公司工作，今天是2024年5月1日。你好，世界！\n"
        "吾輩は猫である。名前はまだ無い。안녕하세요, 세계!\n"
        "สวัสดีชาวโลก ภาษาไทยไม่มีการเว้นวรรค\n"
        "مرحبا بالعالم، كيف حالك؟ שלום עולם\n"
        "Привет, мир! Ещё раз. Καλημέρα κόσμε.\n"
        "नमस्ते दुनिया, आप कैसे हैं?\n"
        "Größe, naïve café, señor; “quoted” — 20 € … § 5 © ½\n"
        "ok 👍 fine 😀!"
    ),
}
MOST_AROUND = 3
IDS = re.compile(r"^\[([\d, ]*)\]\s*$", re.MULTILINE)


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens of the texts by a source's own `file` (`ids` with those put around a text, `plain` without), by transformers."""

    file: str = ""
    ids: list[list[int]] | None = None
    plain: list[list[int]] = []
    transformers: list[list[int]] | None = None


def command(tool: Path, model: Path, text: Path, help_text: str) -> Command:
    """The call that cuts the text in a file; older programs would take a backslash for the begin of another letter."""
    escape = ("--no-escape",) if "--no-escape" in help_text else ()
    argv = (str(tool), "-m", str(model), "-f", str(text), "--ids", *escape)
    return Command(argv, cwd=str(text.parent), env=tool_env(tool))


def read(out: str) -> list[int]:
    """The tokens that the program has written, among what else it says; ValueError without any."""
    lists = IDS.findall(out)
    if not lists:
        raise ValueError
    return list(map(int, filter(None, lists[-1].replace(" ", "").split(","))))


def compare(
    names: Sequence[str], have: Sequence[list[int]], source: Source, tokens: Sequence[str], strict: bool = True
) -> Findings:
    """Compare the tokens of the named texts with the source's: the file of the model's author decides, not a library.

    Without `strict` a difference that English does not have is a note: some tags cut some scripts in a way of their own.
    """
    library = source.transformers
    if not source.file:
        if library is None:
            return Findings(notes=("nothing here can read how the source cuts a text, so its tokens were not compared",))
        wrong = _first(names, have, library, tokens)
        return Findings(failures=(f"llama.cpp cuts texts otherwise than transformers the source's: {wrong}",) if wrong else ())
    theirs = source.ids or source.plain
    for at, (mine, plain) in enumerate(zip(have, source.plain, strict=True)):
        if around(mine, plain) is None:
            line = f"llama.cpp cuts texts otherwise than the source's {source.file}: "
            line += _first(names[at : at + 1], [mine], [theirs[at]], tokens)
            if library and library[at] == mine:
                return Findings(notes=(f"{line}; transformers cuts as the output does",))
            return Findings(failures=(line,)) if strict or names[at] == ENGLISH else Findings(notes=(line,))
    findings = _framed(have, source, tokens)
    if findings != Findings() or source.ids is None or library is None:
        return findings
    wrong = _first(names, library, source.ids, tokens)
    line = f"transformers does not follow the source's {source.file}, the output does: {wrong}"
    return Findings(notes=(line,) if wrong else ())


def _framed(have: Sequence[list[int]], source: Source, tokens: Sequence[str]) -> Findings:
    """Compare what is put around a text with the source's; the tokens of the text itself are known to be right."""
    plain = source.plain[0]
    mine, library = around(have[0], plain), around(source.transformers[0], plain) if source.transformers else None
    due, who = (around(source.ids[0], plain), f"the source's {source.file}") if source.ids else (library, "transformers")
    if due is None or mine is None or mine == due:
        return Findings()
    line = f"around a text llama.cpp puts {_sides_text(mine, tokens)}, {who} {_sides_text(due, tokens)}"
    if mine == library:
        return Findings(notes=(f"{line}; transformers does as the output",))
    # A GGUF can say one token on each side; where a source has more, its chat template as a rule has them as well.
    several = any(len(side) > 1 for side in due)
    return Findings(notes=(line,)) if several else Findings(failures=(line,))


def around(ids: Sequence[int], plain: Sequence[int]) -> tuple[list[int], list[int]] | None:
    """The tokens before and after those of a text itself; None when these are not there as a whole."""
    for at in range(min(len(ids) - len(plain), MOST_AROUND) + 1):
        if list(ids[at : at + len(plain)]) == list(plain):
            return list(ids[:at]), list(ids[at + len(plain) :])
    return None


def _sides_text(sides: tuple[list[int], list[int]], tokens: Sequence[str]) -> str:
    before, after = (" ".join(_token(number, tokens) for number in side) or "nothing" for side in sides)
    return f"{before} and {after}" if before != after else before


def _token(number: int, tokens: Sequence[str]) -> str:
    return f"{number} ({tokens[number]!r})" if 0 <= number < len(tokens) else str(number)


def _first(names: Sequence[str], have: Sequence[Sequence[int]], due: Sequence[Sequence[int]], tokens: Sequence[str]) -> str:
    """The first difference of two lists of tokens, in words; "" where there is none."""
    for name, mine, theirs in zip(names, have, due, strict=True):
        if list(mine) != list(theirs):
            pairs = zip(mine, theirs, strict=False)
            at = next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(mine), len(theirs)))
            one, other = (_token(side[at], tokens) if at < len(side) else "the end" for side in (mine, theirs))
            return f"{one} instead of {other} (token {at} of {name})"
    return ""


def check(checked: Words, find: Callable[[str], Path], strict: bool = True) -> Findings:
    """Cut the texts with the tag's program and with the source's tokenizer, and compare; `strict` as for `compare`."""
    if not isinstance(checked.metadata.get("tokenizer.ggml.tokens"), list):
        return Findings()
    try:
        tool = find(TOOL)
    except OrchestrateError:
        return Findings(notes=(f"the tag's programs have no {TOOL}, so its tokens were not compared",))
    try:
        have = [cut(checked, tool, text) for text in TEXTS.values()]
        question = {"view": str(checked.view), "texts": list(TEXTS.values()), "shown": str(checked.translated), "pieces": False}
        source = interpreter.ask(checked.interpreter, SCRIPT, question, Source, (checked.view, checked.translated))
    except CommandFailed as error:
        return Findings(notes=(f"its tokens were not compared, as {error.message.splitlines()[0]}",))
    return compare(list(TEXTS), have, source, checked.metadata["tokenizer.ggml.tokens"], strict)


def cut(checked: Words, tool: Path, text: str) -> list[int]:
    """The tokens that the tag's program makes of a text; CommandFailed when it makes none."""
    file = checked.interpreter.scratch / "text.txt"
    file.write_bytes(text.encode())
    try:
        call = command(tool, checked.files[0], file, load.help_of(tool))
        return read(process.capture(sandbox.around(call, checked.interpreter.limits), load.limit(checked.files, ())))
    except CommandFailed as error:  # its own words may name folders of this machine
        raise error.retold(f"`{tool.stem}` {process.ended(error.code)}", "") from error
    except ValueError as error:
        raise CommandFailed(f"`{tool.stem}` has written no tokens", code=0) from error
    finally:
        file.unlink(missing_ok=True)
