#!/usr/bin/env bash
# transformers 5.23.0 with sentencepiece 0.2.0, tokenizers 0.23.3; the tokenizer is Mistral's own (mistral-common 1.9.1, tokenizer.model.v1).
#
# A folder with that tokenizer.model and a config.json of the type `mistral` is loaded by AutoTokenizer as TokenizersBackend, whose
# pipeline puts no blank before a text: "Hello world" begins with another token than sentencepiece itself gives, and than the same
# folder gives when its config.json says `llama`. There is no warning, and save_pretrained writes that pipeline into tokenizer.json.
# Source: models/auto/tokenization_auto.py maps `mistral` to a class that builds its pipeline without Metaspace's prefix.
#
# Seen: sentencepiece [22557, 1526]; llama [1, 22557, 1526]; mistral [1, 16230, 1526]. Ends with 1 where that has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip --disable-pip-version-check --quiet install \
    transformers==5.23.0 tokenizers==0.23.3 sentencepiece==0.2.0 protobuf==7.36.2 mistral-common==1.9.1
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'EOF'
import json
import pathlib
import shutil
import sys

import mistral_common
import sentencepiece
from transformers import AutoTokenizer

model = pathlib.Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
ids = {"sentencepiece": sentencepiece.SentencePieceProcessor(model_file=str(model)).encode("Hello world")}
for family in ("llama", "mistral"):
    place = pathlib.Path(family)
    place.mkdir()
    shutil.copy(model, place / "tokenizer.model")
    (place / "config.json").write_text(json.dumps({"model_type": family}))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    (place / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **special}))
    ids[family] = AutoTokenizer.from_pretrained(place).encode("Hello world")
print(ids)
sys.exit(ids != {"sentencepiece": [22557, 1526], "llama": [1, 22557, 1526], "mistral": [1, 16230, 1526]})
EOF
