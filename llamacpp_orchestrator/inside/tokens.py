"""Cut texts with a source's tokenizer, and read its sentencepiece file: tokens.py QUESTION ANSWER, with the environment's
python.

Both are JSON files. Question: {"view": folder, "shown": the same as transformers is shown it, "texts": [text, ...],
"pieces": whether sentencepiece's is wanted}. Answer: {"pieces": {"name", "texts", "scores", "types" (as a GGUF numbers them)}
or null, "file": name of the file that cut the texts or "", "ids": [[token, ...], ...] with what it puts around a text, null where
the file does not say that, "plain": the same without, "transformers": the ids by transformers, or null where it cannot read the
source}.
"""

import json
import sys
from pathlib import Path
from typing import Any

SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
# transformers shifts the numbers of this one, as fairseq did.
SHIFTED = "sentencepiece.bpe.model"


def load_sentencepiece(view: Path) -> tuple[str, Any]:
    """A view's sentencepiece file; nothing for one of another kind by the same name, such as a list of tiktoken's."""
    for name in SENTENCEPIECE:
        if (view / name).is_file():
            try:
                from sentencepiece import SentencePieceProcessor

                model = SentencePieceProcessor()
                model.LoadFromFile(str(view / name))
            except Exception:
                return "", None
            return name, model
    return "", None


def kind(model: Any, number: int) -> int:
    """A piece's type as gguf.TokenType numbers it; upstream's scripts take one that a user defined for a plain one."""
    tests = ((2, model.IsUnknown), (3, model.IsControl), (5, model.IsUnused), (6, model.IsByte))
    return next((number_of for number_of, test in tests if test(number)), 1)


def pieces(view: Path) -> dict[str, Any] | None:
    name, model = load_sentencepiece(view)
    if not name:
        return None
    numbers = range(model.vocab_size())
    return {
        "name": name,
        "texts": [model.IdToPiece(number) for number in numbers],
        "scores": [model.GetScore(number) for number in numbers],
        "types": [kind(model, number) for number in numbers],
    }


def by_file(view: Path, texts: list[str]) -> dict[str, Any]:
    if (view / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(view / "tokenizer.json"))
        except Exception:  # newer than this environment's tokenizers
            return {"file": ""}
        tokenizer.no_padding()
        tokenizer.no_truncation()
        ids, plain = ([tokenizer.encode(text, add_special_tokens=framed).ids for text in texts] for framed in (True, False))
        return {"file": "tokenizer.json", "ids": ids, "plain": plain}
    name, model = load_sentencepiece(view)
    if not name or name == SHIFTED:
        return {"file": ""}
    return {"file": name, "ids": None, "plain": [model.EncodeAsIds(text) for text in texts]}


def by_transformers(view: Path, texts: list[str]) -> list[list[int]] | None:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(view), trust_remote_code=False)
        return [tokenizer(text).input_ids for text in texts]
    except Exception:
        return None


def answer(question: dict[str, Any]) -> dict[str, Any]:
    view, texts = Path(question["view"]), question["texts"]
    content: dict[str, Any] = {"pieces": pieces(view) if question["pieces"] else None}
    return content | (by_file(view, texts) | {"transformers": by_transformers(Path(question["shown"]), texts)} if texts else {})


result = answer(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")
