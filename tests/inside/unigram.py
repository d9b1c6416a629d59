"""Make a T5, an XLM-R and an InternLM2 with random weights, whose tokenizers are sentencepiece models trained on a text.

Called as unigram.py TEXT DIR. These are the ones for which upstream's scripts import sentencepiece_model_pb2 in a function.
"""

import json
import shutil
import sys
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from transformers import T5Config
from transformers import T5ForConditionalGeneration
from transformers import XLMRobertaConfig
from transformers import XLMRobertaModel

TEXT, DIR = sys.argv[1], Path(sys.argv[2])
PIECES, WIDTH, INNER, HEADS = 600, 64, 128, 2


def train(name, **special):
    sentencepiece.SentencePieceTrainer.train(
        input=TEXT, model_prefix=str(DIR / name), vocab_size=PIECES, model_type="unigram", minloglevel=2, **special
    )
    return DIR / f"{name}.model"


def finish(model, tokenizer, name, tokenizer_class, **words):
    shutil.copy(tokenizer, model / name)
    (model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": tokenizer_class, "unk_token": "<unk>", **words}))


def t5():
    shape = {"d_model": WIDTH, "d_kv": WIDTH // HEADS, "d_ff": INNER, "num_layers": 1, "num_heads": HEADS}
    config = T5Config(vocab_size=PIECES, decoder_start_token_id=0, **shape)
    T5ForConditionalGeneration(config).save_pretrained(DIR / "t5")
    words = {"eos_token": "</s>", "pad_token": "<pad>", "extra_ids": 0}
    finish(DIR / "t5", train("t5-words", pad_id=0, eos_id=1, unk_id=2, bos_id=-1), "spiece.model", "T5Tokenizer", **words)


def xlmr(tokenizer):
    shape = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": 1, "num_attention_heads": HEADS}
    config = XLMRobertaConfig(vocab_size=PIECES + 2, max_position_embeddings=130, type_vocab_size=1, **shape)
    XLMRobertaModel(config).save_pretrained(DIR / "xlmr")
    words = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "sep_token": "</s>", "cls_token": "<s>"}
    finish(DIR / "xlmr", tokenizer, "sentencepiece.bpe.model", "XLMRobertaTokenizer", mask_token="<mask>", **words)


def internlm2(tokenizer):
    model, size = DIR / "internlm2", WIDTH // HEADS
    model.mkdir()
    config = {"architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "hidden_size": WIDTH, "vocab_size": PIECES}
    config |= {"num_attention_heads": HEADS, "num_key_value_heads": 1, "num_hidden_layers": 1, "intermediate_size": INNER}
    config |= {"max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 10000, "hidden_act": "silu", "bias": False}
    config |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "tie_word_embeddings": False, "torch_dtype": "float32"}
    (model / "config.json").write_text(json.dumps(config))
    shapes = {"model.tok_embeddings": (PIECES, WIDTH), "output": (PIECES, WIDTH), "model.norm": (WIDTH,)}
    layer = {"attention.wqkv": ((HEADS + 2) * size, WIDTH), "attention.wo": (WIDTH, WIDTH), "feed_forward.w1": (INNER, WIDTH)}
    layer |= {"feed_forward.w3": (INNER, WIDTH), "feed_forward.w2": (WIDTH, INNER), "attention_norm": (WIDTH,)}
    shapes |= {f"model.layers.0.{name}": shape for name, shape in (layer | {"ffn_norm": (WIDTH,)}).items()}
    weights = {f"{name}.weight": torch.randn(shape) * 0.05 for name, shape in shapes.items()}
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    finish(model, tokenizer, "tokenizer.model", "InternLM2Tokenizer", bos_token="<s>", eos_token="</s>")


if __name__ == "__main__":
    DIR.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(7)
    t5()
    words = train("words")
    xlmr(words)
    internlm2(words)
