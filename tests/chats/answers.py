"""Runs inside/chat.py on a tokenizer for each template here; by the environment's python: answers.py GGUF_PY SCRIPT TALKS TO.

Standard input holds {family: {"bos", "eos", "special", "adds_bos", "ends"}}; each answer is written to TO/family/answer.json.
"""

import json
import runpy
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
sys.path.insert(0, str(Path(sys.argv[2]).parent))

from gguf import GGUFWriter
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

package, script, talks, to = sys.argv[1:]
for family, kind in json.load(sys.stdin).items():
    folder = Path(to, family)
    folder.mkdir(parents=True)
    words = dict.fromkeys(["<unk>", kind["bos"], kind["eos"], *kind["special"]])
    inner = Tokenizer(WordLevel({word: number for number, word in enumerate(words) if word is not None}, unk_token="<unk>"))
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        bos_token=kind["bos"],
        eos_token=kind["eos"],
        additional_special_tokens=kind["special"],
    )
    template = Path(__file__).with_name(f"{family}.jinja")
    if template.is_file():
        made.chat_template = template.read_text(encoding="utf-8").removesuffix("\n")
    made.save_pretrained(folder)
    ends = [made.convert_tokens_to_ids(word) for word in kind.get("ends", [])]
    if ends:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    writer = GGUFWriter(folder / "x.gguf", "llama")
    if isinstance(kind["adds_bos"], str):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(kind["adds_bos"])
    elif kind["adds_bos"] is not None:
        writer.add_add_bos_token(kind["adds_bos"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    asked = {"view": str(folder), "gguf": str(folder / "x.gguf"), "talks": json.loads(Path(talks).read_text(encoding="utf-8"))}
    (folder / "asked.json").write_text(json.dumps(asked))
    sys.argv = [script, package, str(folder / "asked.json"), str(folder / "answer.json")]
    runpy.run_path(script, run_name="__main__")
