"""Load a tokenizer and render a chat template with transformers."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers import PreTrainedTokenizerFast

SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


def read(path: Path) -> dict[str, Any]:
    """A JSON file's dictionary; an empty one for any other file, and for none."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def load(view: Path) -> Any:
    """The tokenizer of a source."""
    try:
        return AutoTokenizer.from_pretrained(str(view), trust_remote_code=False)
    except Exception:
        if (view / "tokenizer.json").is_file() and not (view / "tokenizer.model").is_file():
            return plain(view)
        # The fast kind may have to be made from tokenizer.model first, for which not every environment has all it takes.
        return AutoTokenizer.from_pretrained(str(view), trust_remote_code=False, use_fast=False)


def plain(view: Path) -> Any:
    """A tokenizer of no class of its own, for a source whose class this environment's transformers does not know."""
    config = read(view / "tokenizer_config.json")
    words = {name: text.get("content") if isinstance(text := config.get(name), dict) else text for name in SPECIAL}
    return PreTrainedTokenizerFast(
        tokenizer_file=str(view / "tokenizer.json"),
        chat_template=config.get("chat_template"),
        **{name: text for name, text in words.items() if text},
    )


def render(tokenizer: Any, messages: list[Any], date: Any, tools: Any = None, **more: Any) -> dict[str, str]:
    """What a template makes of a conversation, {"text"}, or why it cannot, {"error"}; `date` answers its strftime_now."""
    try:
        text = tokenizer.apply_chat_template(
            messages,
            tools=tools,
            tokenize=False,
            add_generation_prompt=messages[-1]["role"] != "assistant",
            strftime_now=date,
            **more,
        )
    except Exception as error:
        return {"error": f"{error}" or type(error).__name__}
    return {"text": text}
