"""What transformers says of the matrix's checkpoints: likeliest next tokens, embeddings, and ids of cuts of a text.

references.py SPEC FOLDER TEXT: for each layout below FOLDER and each model of SPEC, a file reference.json in its folder.
"""

import json
import pathlib
import random
import sys

import tokenizers
import torch
from transformers import AutoModel
from transformers import AutoModelForCausalLM
from transformers import AutoTokenizer

CUTS, LENGTHS, TOP = 300, (8, 40, 80, 120), 40


def cuts(text):
    """Random pieces of a text, none of them empty."""
    at = random.Random(7)
    starts = [(at.randrange(len(text) - 80), at.randrange(1, 80)) for _ in range(CUTS)]
    return [text[start : start + length] for start, length in starts]


def logits(folder, ids):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = [ids[100 * number : 100 * number + length] for number, length in enumerate(LENGTHS)]
    answers = []
    for prompt in prompts:
        with torch.no_grad():
            said = torch.log_softmax(model(torch.tensor([prompt])).logits[0, -1].double(), -1)
        top = said.topk(TOP)
        answers.append({"prompt": prompt, "next": dict(zip(map(int, top.indices), map(float, top.values), strict=True))})
    return answers


def embeddings(folder, texts):
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    answers = []
    for text in texts:
        with torch.no_grad():
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        answers.append({"text": text, "vector": [float(number) for number in mean / mean.norm()]})
    return answers


spec = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))
text = pathlib.Path(sys.argv[3]).read_text(encoding="utf-8")
for layout in sorted(pathlib.Path(sys.argv[2]).iterdir()):
    for one in spec:
        folder = layout / one["name"]
        # The file of the model's author is followed, as the library of tokenizers reads it.
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        pieces = [{"text": cut, "ids": tokenizer.encode(cut, add_special_tokens=False).ids} for cut in cuts(text)]
        answer = {"cuts": pieces}
        if one["encoder"]:
            answer["embeddings"] = embeddings(folder, [piece["text"] for piece in pieces[:6] if piece["text"].strip()])
        else:
            answer["logits"] = logits(folder, tokenizer.encode(text[:4000], add_special_tokens=False).ids)
        (folder / "reference.json").write_text(json.dumps(answer), encoding="utf-8")
