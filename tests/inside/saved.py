"""Make the checkpoints of the matrix with the transformers at hand, or save others' anew with it.

saved.py make SPEC TOKENIZERS TEXT DEST: small models with random weights, and their tokenizers, out of a list of configs.
saved.py again SPEC SOURCE DEST: the same checkpoints loaded and saved by this transformers.
Each folder of DEST gets a file around.json: the ids of a short text with what this library puts around it.
"""

import json
import pathlib
import sys

import torch
from transformers import AutoConfig
from transformers import AutoModel
from transformers import AutoModelForCausalLM
from transformers import AutoTokenizer

SHORT = "Hello world"


def tokenizer_in(folder, text):
    """The tokenizer of a folder; a unigram model is trained first."""
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "sentencepiece.bpe.model")):
        import sentencepiece

        model = folder / "sentencepiece.bpe"
        sentencepiece.SentencePieceTrainer.train(
            input=str(text), model_prefix=str(model), vocab_size=1000, model_type="unigram", minloglevel=2, hard_vocab_limit=False
        )
    return AutoTokenizer.from_pretrained(folder)


def randomize(model):
    """Weights that are large enough that each part of the model changes what comes out."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.15, generator=generator)
            else:
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)


def save(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    around = tokenizer(SHORT)["input_ids"]
    (folder / "around.json").write_text(json.dumps(around), encoding="utf-8")


def make(spec, tokenizers, text, dest):
    for one in spec:
        tokenizer = tokenizer_in(pathlib.Path(tokenizers) / one["name"], text)
        tokenizer.add_tokens(one["tokens"], special_tokens=True)
        config = AutoConfig.for_model(one["name"], **{"vocab_size": len(tokenizer), **one["config"]})
        for name in ("bos_token_id", "eos_token_id"):
            if getattr(tokenizer, name, None) is not None and not one["encoder"]:
                setattr(config, name, getattr(tokenizer, name))
        model = (AutoModel if one["encoder"] else AutoModelForCausalLM).from_config(config).float()
        if hasattr(model, "generation_config") and model.generation_config:
            model.generation_config.bos_token_id, model.generation_config.eos_token_id = config.bos_token_id, config.eos_token_id
        randomize(model)
        save(model, tokenizer, pathlib.Path(dest) / one["name"])


def again(spec, source, dest):
    for one in spec:
        folder = pathlib.Path(source) / one["name"]
        model = (AutoModel if one["encoder"] else AutoModelForCausalLM).from_pretrained(folder, dtype=torch.float32)
        save(model, AutoTokenizer.from_pretrained(folder), pathlib.Path(dest) / one["name"])


torch.set_num_threads(2)
spec = json.loads(pathlib.Path(sys.argv[2]).read_text(encoding="utf-8"))
{"make": make, "again": again}[sys.argv[1]](spec, *sys.argv[3:])
