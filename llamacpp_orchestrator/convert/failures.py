"""What a failure of upstream's scripts likely means, and what to do: by their words, by the place, or by what was being read."""

from __future__ import annotations

import re

import msgspec

from llamacpp_orchestrator.convert.known_failures import MERGE
from llamacpp_orchestrator.convert.known_failures import PAIRED
from llamacpp_orchestrator.convert.known_failures import TAG_OR_FILES
from llamacpp_orchestrator.convert.known_failures import TOKENIZER
from llamacpp_orchestrator.convert.known_failures import WORDS
from llamacpp_orchestrator.convert.known_failures import WRAPPED
from llamacpp_orchestrator.system.diagnose import LONGEST
from llamacpp_orchestrator.system.diagnose import filled
from llamacpp_orchestrator.system.diagnose import matched

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

# Which script failed ("lora", "hf" or either), the way through upstream's functions (>main>write>...), and the error or the line
# to blame → cause and way out. Functions are those of b3878 to b11434: convert_*_to_gguf.py, conversion/*.py, gguf-py/gguf/*.py.
PLACES = (
    (
        "lora",
        r">__init__",
        r"'LoraTorchTensor' object has no attribute 'dim'",
        "this tag's script cannot choose the type of an adapter by itself (`outtype: auto`)",
        "name one: f16, bf16 or f32",
    ),
    (
        "lora",
        r">(?:modify|prepare)_tensors",
        r"Unprocessed experts: \[+'([^']+)|KeyError: '([^']*experts[^']*)'",
        "the adapter changes some of a layer's experts, of which this tag wants all ({0})",
        MERGE,
    ),
    (
        "lora",
        r"",
        r"NotImplementedError|'LoraTorchTensor' object|for LoRA tensors|dim == 1 for dim in|dest_data\.dim\(\) == 1|n_new_elems",
        "this tag's script cannot turn, cut or join a matrix of the adapter as it does with the base's",
        MERGE + "; or pin a newer tag",
    ),
    (
        "lora",
        r">modify_tensors",
        r"AssertionError|IndexError|RuntimeError|ZeroDivisionError",
        "a matrix of the adapter is not as large as the base's config.json says",
        "list it under its own base; if it is that, " + MERGE,
    ),
    (
        "lora",
        r"",
        r"Can not map tensor '([^']+)'",
        "this architecture has no place for a matrix of the adapter ({0})",
        "list it under its own base; if it is that, " + MERGE,
    ),
    (
        "hf",
        r">(?:modify|prepare)_tensors",
        r"Unprocessed experts: \[+'([^']+)|KeyError: '([^']*experts[^']*)'",
        "the weights lack some of a layer's experts, or config.json counts more of them ({0}, ...)",
        "get all shards, and the config.json of these weights",
    ),
    (
        "hf",
        r">modify_tensors",
        r"AssertionError|IndexError|RuntimeError|ZeroDivisionError|TypeError",
        "a tensor has not the shape that config.json gives it",
        PAIRED,
    ),
    (
        "",
        r"",
        r"KeyError: '([^']+)'\n.*(?:hparams|rope_)\w*\[",
        "config.json has no `{0}`, which this tag's script reads",
        TAG_OR_FILES,
    ),
    (
        "",
        r">(?:load_hparams|get_model_architecture|main)$|^><module>$",
        r"IndexError|(?:TypeError|AttributeError): .*(?:NoneType|list|str)",
        "config.json is no object, or names nothing under `architectures`",
        "use the config.json of the original model",
    ),
    (
        "",
        r">(?:_pack_val|_pack|add_\w+)$",
        r"items in a GGUF array should be of the same type",
        "a list in the front matter of README.md holds several kinds; in YAML a bare `no` is false, and a bare 1 a number",
        "put its entries in quotes, or leave README.md out of the folder",
    ),
    (
        "",
        r">(?:_pack_val|_pack|add_\w+|set_gguf_meta_model)$",
        r"has no len\(\)|can't concat|expected str instance|no attribute 'encode'",
        "what is to be a text in the front matter of README.md is none; in YAML a bare 1.10 is the number 1.1",
        "put it in quotes, or leave README.md out of the folder",
    ),
    (
        "",
        r">(?:_pack_val|_pack|add_\w+)$",
        r"struct\.error: (.+)",
        "a number in a JSON file of the model is none, or not of the kind or size that is wanted ({0})",
        "compare config.json, generation_config.json and adapter_config.json with the original's: numbers have no quotes",
    ),
    (
        "",
        r">(?:_create_vocab_\w+|_set_vocab_\w+|get_vocab_base|set_vocab)$",
        r"IndexError",
        "the tokenizer numbers a token beyond the model's vocabulary",
        "tokens were added without resizing the model: use the original's tokenizer files, or resize and save both again",
    ),
)

# What is told least exactly: the cause is completed by what was being read.
VAGUE = (
    (r"could not find any of: \[(.*)\]", "config.json has none of {0}", TAG_OR_FILES),
    (r"KeyError: '([^']+)'", "the script looks for `{0}` in the model's files, and it is not there", TAG_OR_FILES),
    (
        r"Can not map tensor '([^']+)'|Unable to map tensor",
        "this architecture has no place for a tensor ({0})",
        "pin a newer tag, or see that config.json is that of these weights",
    ),
    (
        r"(?:NotImplemented|Type)Error: (.*not .*supported.*|Unsupported.+)|NotImplementedError: (.+)"
        r"|(?:Value|Assertion)Error: ((?:Unsupported|Unexpected|Unprocessed|Unknown|unsupported|unexpected) .+"
        r"|.* (?:only support|not support|require|expected|must )\w*.*)",
        "this tag cannot convert such a model: {0}",
        "pin a newer tag",
    ),
)

# A function of upstream's on the way, innermost first → what it was reading, and what to do when nothing better is known.
READING = (
    (r"set_gguf_parameters|generate_extra_tensors|find_hparam|load_hparams", "config.json", TAG_OR_FILES),
    (r"LoraTorchTensor|LoraModel", "the adapter's matrices", MERGE + "; or pin a newer tag"),
    (
        r"load_model_card|apply_metadata_heuristic|load_metadata_override|get_model_id_components",
        "README.md",
        "leave README.md out",
    ),
    (r"_pack_val|_pack|write_kv_data\w*|set_gguf_meta_model", "the values of the GGUF's header", TAG_OR_FILES),
    (r"\w*vocab\w*|_try_load\w*|_load|_add_special_token|_set_special_token|add_to_gguf", "the tokenizer's files", TOKENIZER),
    (r"modify_tensors|prepare_tensors|dequant\w*|map_tensor_name|permute|write_tensor\w*", "the weights", PAIRED),
    (r"filter_tensors|get_tensors|index_tensors|\w*model_part\w*", "the weights' files", PAIRED),
    (r"\w+|<module>", "config.json", TAG_OR_FILES),
)


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
    found = failure(tail)
    if (known := tensor(tail))[0] or (known := matched(tail, WORDS))[0]:
        return known
    if found is None:
        return matched(tail, VAGUE)
    way, said = "".join(f">{name}" for _, name in found.frames), f"{found.error}\n{found.line}"
    for script, functions, error, *told in PLACES:
        if script in ("", found.script) and re.search(functions, way) and (match := re.search(error, said)):
            return filled(match, *told)
    what, remedy = reading(found)
    cause, hint = matched(found.error, VAGUE)
    if cause:
        return f"{cause} (it was reading {what})", f"{hint}; {REPORT}"
    file, function = found.frames[-1]
    error = found.error if ": " in found.error else f"{found.error} at `{found.line}`"
    place = f"{error}; {function} in {file}" + (f"; just before: {found.before}" if found.before else "")
    return f"upstream's script did not expect what it read in {what} ({place})", f"{remedy}; {REPORT}"


def tensor(said: str) -> tuple[str, str]:
    """What the name of a tensor without a place tells of how its model was saved, and the way out; two empty texts without."""
    name = "".join(part or "" for part in match.groups()) if (match := UNMAPPED.search(said)) else ""
    rows = (row for row in WRAPPED if re.search(row[0], name))
    return next(((f"{cause} ({name[:LONGEST]})", remedy) for _, cause, remedy in rows), ("", ""))


def reading(found: Failure) -> tuple[str, str]:
    """What a script was reading when it failed, in words, and what to do about that when nothing better is known."""
    for _, name in reversed(found.frames):
        for function, what, remedy in READING[:-1]:
            if re.fullmatch(function, name):
                return what, remedy
    return READING[-1][1:]


def is_certain(code: int, tail: str) -> bool:
    """Whether a script that was shown a model without its weights would fail with them as well; in doubt it may not."""
    found = failure(tail)
    if found is None:
        return code > 0  # it has ended by itself, with its own words for that
    said = f"{found.error}\n{found.line}"
    if re.search(r"KeyError: .*\n.*hparams\[|config not found in hparams", said):
        return True
    return bool(SMALL.search("".join(f">{name}" for _, name in found.frames))) and not TENSORS.search(said)
