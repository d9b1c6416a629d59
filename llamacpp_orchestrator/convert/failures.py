"""What a failure of upstream's scripts likely means, and what to do: by their words, by the place, or by what was being read."""

from __future__ import annotations

import re

import msgspec

from llamacpp_orchestrator.meanings import LONGEST
from llamacpp_orchestrator.meanings import Meaning
from llamacpp_orchestrator.meanings import matched
from llamacpp_orchestrator.meanings import table

FRAME = re.compile(r'^ *File "(.+)", line \d+, in (\S+)$')
ERROR = re.compile(r"[A-Za-z_][\w.]*(?::.*)?")
UPSTREAM = re.compile(r"(?:.*[/\\])?((?:conversion|gguf)[/\\]\w+\.py|convert_\w+_to_gguf\.py)")
UNMAPPED = re.compile(r"(?:[Cc]an ?not|Unable to) map tensor '([^']+)'|Unexpected tensors?:? \[*'([^']+)'")
BEFORE = re.compile(r"(?m)^INFO:[\w.-]+:(.*\S.*)$")
REPORT = "or report it to llama.cpp with the log"
# Upstream's functions that read options and small files alone. MiniMax looks at a tensor in set_vocab (b11434:
# conversion/minimax.py), which its error names.
SMALL = re.compile(r">(?:load_hparams|get_model_architecture|find_hparam|split_str_to_n_bytes|set_vocab)\b|>(?:main|<module>)$")
TENSORS = re.compile(r"\.safetensors|_tensors|weight_map")


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A traceback's end: upstream's frames as (file, function), outermost first, error, line to blame, and last words before."""

    frames: tuple[tuple[str, str], ...]
    error: str
    line: str
    before: str = ""

    @property
    def script(self) -> str:
        """Which of the two scripts it was, as tables name it."""
        return "lora" if "lora" in self.frames[0][0] else "hf"

    @property
    def way(self) -> str:
        """The way through upstream's functions: >main>write>..."""
        return "".join(f">{name}" for _, name in self.frames)


def failure(tail: str) -> Failure | None:
    """Where upstream's script failed, by the last traceback of its words; None without one that goes through its files."""
    begin = max(0, tail.rfind("Traceback (most recent call last)"))
    lines, before = tail[begin:].splitlines(), BEFORE.findall(tail[:begin])
    places = [(number, match) for number, line in enumerate(lines) if (match := FRAME.match(line))]
    frames = [(number, own[1].replace("\\", "/"), match[2]) for number, match in places if (own := UPSTREAM.fullmatch(match[1]))]
    if not frames:
        return None
    after = [line for line in lines[places[-1][0] + 1 :] if ERROR.fullmatch(line)]
    blamed = lines[frames[-1][0] + 1].strip() if len(lines) > frames[-1][0] + 1 else ""
    error, last = after[0] if after else "", " ".join(before[-1].split())[:LONGEST] if before else ""
    return Failure(frames=tuple(frame[1:] for frame in frames), error=error, line=blamed, before=last)


def explain(tail: str) -> tuple[str, str]:
    """The likely cause and the remedy for a script's last lines: by its words, by the place, or by what it was reading then.

    Two empty texts where it said nothing that is known, and died of no error of Python's.
    """
    found, vague = failure(tail), table("convert", "vague")
    if (known := tensor(tail))[0] or (known := matched(tail, table("convert", "scripts")))[0]:
        return known
    if found is None:
        return matched(tail, vague)
    if (known := matched(f"{found.error}\n{found.line}", places(found)))[0]:
        return known
    what, remedy = reading(found)
    cause, hint = matched(found.error, vague)
    if cause:
        return f"{cause} (it was reading {what})", f"{hint}; {REPORT}"
    file, function = found.frames[-1]
    error = found.error if ": " in found.error else f"{found.error} at `{found.line}`"
    place = f"{error}; {function} in {file}" + (f"; just before: {found.before}" if found.before else "")
    return f"upstream's script did not expect what it read in {what} ({place})", f"{remedy}; {REPORT}"


def tensor(said: str) -> tuple[str, str]:
    """What the name of a tensor without a place tells of how its model was saved, and the way out; two empty texts without."""
    name = "".join(part or "" for part in match.groups()) if (match := UNMAPPED.search(said)) else ""
    cause, remedy = matched(name, table("convert", "tensors"))
    return (f"{cause} ({name[:LONGEST]})", remedy) if cause else ("", "")


def places(found: Failure) -> list[Meaning]:
    """The rows that hold for a script, and for the way through its functions on which it failed."""
    rows = [row for row in table("convert", "places") if row.script in ("", found.script)]
    return [row for row in rows if re.search(row.within, found.way)]


def reading(found: Failure) -> tuple[str, str]:
    """What a script was reading when it failed, in words, and what to do about that when nothing better is known."""
    *rows, last = table("convert", "reading")
    known = (matched(name, rows) for _, name in reversed(found.frames))
    return next((told for told in known if told[0]), (last.means, last.way))


def is_certain(code: int, tail: str) -> bool:
    """Whether a script that was shown a model without its weights would fail with them as well; in doubt it may not."""
    found = failure(tail)
    if found is None:
        return code > 0  # it has ended by itself, with its own words for that
    said = f"{found.error}\n{found.line}"
    if re.search(r"KeyError: .*\n.*hparams\[|config not found in hparams", said):
        return True
    return bool(SMALL.search(found.way)) and not TENSORS.search(said)
