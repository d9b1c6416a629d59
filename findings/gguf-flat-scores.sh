#!/usr/bin/env bash
# gguf 0.19.0 (llama.cpp's gguf-py) with transformers 5.23.0; the tokenizer is Mistral's own (mistral-common 1.9.1, tokenizer.model.v1).
#
# transformers 5 saves a sentencepiece tokenizer as tokenizer.json alone. gguf's LlamaHfVocab, which llama.cpp's convert_hf_to_gguf.py
# takes where there is no tokenizer.model, gives every one of its tokens the score -1000, though sentencepiece's own model has a score
# for each. By these a llama.cpp runtime merges letters, so that most texts are cut into other tokens; nothing warns.
# Source: gguf/vocab.py, LlamaHfVocab.get_token_score.
#
# Seen: {'sentencepiece': '31728 scores', 'LlamaHfVocab': [-1000.0]}. Ends with 1 where that has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip --disable-pip-version-check --quiet install \
    gguf==0.19.0 transformers==5.23.0 tokenizers==0.23.3 sentencepiece==0.2.0 protobuf==7.36.2 mistral-common==1.9.1
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'EOF'
import json
import pathlib
import shutil
import sys

import mistral_common
import sentencepiece
from gguf.vocab import LlamaHfVocab
from transformers import AutoTokenizer

model = pathlib.Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
before, after = pathlib.Path("before"), pathlib.Path("after")
before.mkdir()
shutil.copy(model, before / "tokenizer.model")
(before / "config.json").write_text('{"model_type": "llama"}')
special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
(before / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **special}))
AutoTokenizer.from_pretrained(before).save_pretrained(after)
print(sorted(path.name for path in after.iterdir()))
own = {pieces.get_score(number) for number in range(pieces.vocab_size())}
scores = sorted({score for _, score, _ in LlamaHfVocab(after).all_tokens()})
print({"sentencepiece": f"{len(own)} scores", "LlamaHfVocab": scores})
sys.exit(scores != [-1000.0] or len(own) != 31728)
EOF
