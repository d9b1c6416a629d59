"""The checkpoints: small random weights with numbers of their own, beside genuine tokenizers where there are any."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec

from tests.support import genuine

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 2e-5,
    "tie_word_embeddings": False,
    "attention_dropout": 0.0,
}
ENCODER = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 514,
    "layer_norm_eps": 1e-5,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "type": "yarn",
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 64,
}
MLA = {
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "head_dim": 8,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
    "routed_scaling_factor": 1.5,
    "num_nextn_predict_layers": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
GEMMA = {"sliding_window": 32, "query_pre_attn_scalar": 16, "tie_word_embeddings": True}
PHI3 = ("<|endoftext|>", "<|assistant|>", "<|end|>")


class Architecture(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of model: a type of transformers, the numbers of its config, and whose tokenizer it has.

    `tokens` are added to the tokenizer: those that the runtime looks for in a family's vocabulary.
    A tokenizer is a name of `genuine.SHA512`, or "sentencepiece:CLASS", "wordpiece", "unigram".
    """

    name: str
    tokenizer: str
    config: dict[str, Any]
    tokens: tuple[str, ...] = ()

    @property
    def encoder(self) -> bool:
        """Whether it makes embeddings and no text."""
        return self.tokenizer in ("wordpiece", "unigram")


def _model(name: str, tokenizer: str, *parts: dict[str, Any], tokens: tuple[str, ...] = (), **more: Any) -> Architecture:
    config: dict[str, Any] = {}
    for part in (*parts, more):
        config |= part
    return Architecture(name=name, tokenizer=tokenizer, config=config, tokens=tokens)


ARCHITECTURES = (
    _model("llama", "llama3_1", SMALL, rope_theta=123456.0, rope_scaling=LLAMA3),
    _model("qwen2", "qwen2_5", SMALL, rope_theta=345678.0),
    _model("qwen3", "qwen3", SMALL, rope_theta=234567.0),
    _model("qwen3_moe", "qwen3", SMALL, EXPERTS, rope_theta=234567.0, norm_topk_prob=True),
    # Of Gemma 2 no script writes another base than 10000: such a model is refused, and tests beside this one see to that.
    _model("gemma2", "sentencepiece:GemmaTokenizer", SMALL, GEMMA, rope_theta=10000.0),
    _model("gemma3_text", "gemma3", SMALL, GEMMA, num_hidden_layers=6, rope_theta=654321.0, rope_local_base_freq=20000.0),
    _model("mistral", "sentencepiece:LlamaTokenizer", SMALL, rope_theta=765432.0, sliding_window=None),
    _model("phi3", "sentencepiece:LlamaTokenizer", SMALL, rope_theta=30000.0, sliding_window=511, pad_token_id=0, tokens=PHI3),
    _model("mixtral", "sentencepiece:LlamaTokenizer", SMALL, rope_theta=876543.0, num_local_experts=4, sliding_window=None),
    _model("deepseek_v3", "deepseek_v3", SMALL, MLA, rope_theta=40000.0, rope_scaling=YARN),
    _model("bert", "wordpiece", ENCODER),
    _model("xlm-roberta", "unigram", ENCODER, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2),
)
POOLING = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ],
    "1_Pooling/config.json": {"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False},
    "sentence_bert_config.json": {"max_seq_length": 256, "do_lower_case": False},
}
SENTENCEPIECE = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, "add_eos_token": False}
UNIGRAM = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "cls_token": "<s>"}
UNIGRAM |= {"sep_token": "</s>", "mask_token": "<mask>", "tokenizer_class": "XLMRobertaTokenizer"}


def tokenizer(name: str, data: Path, dest: Path) -> str:
    """Fill a folder with a tokenizer's files, and answer what stands in for one that npm could not give ("" for none)."""
    dest.mkdir(parents=True)
    kind, _, cls = name.partition(":")
    if kind == "wordpiece":
        for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
            shutil.copy(data / "all-MiniLM-L6-v2" / file, dest / file)
    elif kind == "unigram":  # trained where sentencepiece is
        (dest / "tokenizer_config.json").write_text(json.dumps(UNIGRAM), encoding="utf-8")
    elif kind == "sentencepiece":
        shutil.copy(data / "tiny-llama" / "tokenizer.model", dest / "tokenizer.model")
        (dest / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": cls, **SENTENCEPIECE}), encoding="utf-8")
    else:
        try:
            shutil.copytree(genuine.tokenizer(name), dest, dirs_exist_ok=True)
        except genuine.Absent as reason:
            shutil.rmtree(dest)
            tokenizer("sentencepiece:LlamaTokenizer", data, dest)
            return f"no genuine tokenizer for {name} ({reason}): a sentencepiece one is in its place"
    return ""


def pooling(folder: Path) -> None:
    """Say how an encoder's vectors become one, as sentence-transformers keeps it."""
    for name, content in POOLING.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
