"""The log-probabilities of models in folders for the tokens of peft_kinds.py, as JSON by name: answers_of.py FOLDER."""

import json
import sys
from pathlib import Path

import torch
import transformers

TOKENS = [3, 17, 42, 9, 28, 61, 5]
found = {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    vision = "vision_config" in (folder / "config.json").read_text()
    kind = transformers.AutoModelForImageTextToText if vision else transformers.AutoModelForCausalLM
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        found[folder.name] = torch.log_softmax(model(input_ids=torch.tensor([TOKENS])).logits[0].double(), -1).tolist()
print(json.dumps(found))
