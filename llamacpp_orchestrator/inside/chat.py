"""What a source's own chat template says, as JSON; run by the environment's python: chat.py GGUF_PY ASKED ANSWER.

ASKED holds {"view", "gguf", "talks": [[[role, content], ...], ...]}; see `ollama.Answer` for what is written to ANSWER.
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, sys.argv[1])

from gguf import GGUFReader
from rendering import load
from rendering import read
from rendering import render

# The kinds of BPE for which llama.cpp adds a first token though the file does not say so; src/llama-vocab.cpp.
BOS = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken", "chameleon", "gemma4")


def value(reader: GGUFReader, name: str) -> bytes:
    field = reader.fields.get(f"tokenizer.ggml.{name}")
    return bytes(field.parts[field.data[0]]) if field else b""


def adds_bos(gguf: str) -> bool:
    reader = GGUFReader(gguf)
    said, model, pre = (value(reader, name) for name in ("add_bos_token", "model", "pre"))
    if said and pre != b"gemma4":
        return said != b"\0"
    return model != b"gpt2" or pre.decode() in BOS


def ends(view: Path, tokenizer: Any) -> list[str]:
    asked = read(view / "generation_config.json").get("eos_token_id")
    ids = asked if isinstance(asked, list) else [] if asked is None else [asked]
    named = [tokenizer.convert_ids_to_tokens(number) for number in ids]
    return [str(token) for token in dict.fromkeys([*named, tokenizer.eos_token]) if token]


def said(tokenizer: Any, talk: list[Any], template: str | None, date: str) -> dict[str, str]:
    messages = [{"role": role, "content": content} for role, content in talk]
    more = {"chat_template": template} if template else {}
    return render(tokenizer, messages, lambda form: date, **more)


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    view = Path(asked["view"])
    try:
        tokenizer = load(view)
    except Exception as error:
        return {"error": f"{error}".strip().split("\n")[0] or type(error).__name__}
    template = None if tokenizer.chat_template else read(view / "chat_template.json").get("chat_template")
    special = [*tokenizer.all_special_tokens, *(str(each) for each in tokenizer.added_tokens_decoder.values() if each.special)]
    found = {
        "ends": ends(view, tokenizer),
        "special": list(dict.fromkeys(map(str, special))),
        "bos": str(tokenizer.bos_token or ""),
        "adds_bos": adds_bos(asked["gguf"]),
    }
    if not (tokenizer.chat_template or template):
        return found
    first, second = ([said(tokenizer, talk, template, date) for talk in asked["talks"]] for date in ("one day", "another day"))
    return {**found, "said": first, "dated": first != second}


result = answer(json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
Path(sys.argv[3]).write_text(json.dumps(result), encoding="utf-8")
