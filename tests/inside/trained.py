"""Adapters as PEFT itself saves them, with both matrices at work: trained.py BASE FOLDER KEYWORDS_BY_NAME_AS_JSON."""

import json
import sys
from pathlib import Path

import peft
import torch
import transformers

base, folder, adapters = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
torch.manual_seed(7)
for name, keywords in adapters.items():
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **keywords))
    with torch.no_grad():
        for key, tensor in adapted.named_parameters():
            if "lora_" in key:
                tensor.uniform_(-0.1, 0.1)
    adapted.save_pretrained(folder / name)
