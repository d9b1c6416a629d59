"""Run by the environment's own python: tiny models of many architectures, by transformers, converted by trees' own scripts.

    python architectures.py FOLDER TREE...

Models lie in FOLDER/models/NAME, outputs in FOLDER/TREE'S NAME/NAME.gguf; what fails is told on stderr, exit code 1.
"""

import contextlib
import io
import json
import logging
import runpy
import sys
import traceback
from pathlib import Path

VOCABULARY = 384
SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": VOCABULARY, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
PLAIN = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
GPT = {"n_embd": 64, "n_layer": 4, "n_head": 4, "vocab_size": VOCABULARY, "n_positions": 256, "n_ctx": 256}
FALCON = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": VOCABULARY, "num_kv_heads": 2,
    "new_decoder_architecture": True,
}  # fmt: skip
WINDOW, GEMMA = {"sliding_window": 64}, {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 64}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1, "n_group": 2,
    "topk_group": 1, "n_shared_experts": 1,
}  # fmt: skip
LATENT = {
    **ROUTED, "num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}  # fmt: skip
HYBRID = {"layer_types": ["mamba", "attention"] * 2, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONG = {"type": "longrope", "short_factor": [1 + at / 10 for at in range(8)], "long_factor": [2.0 + at for at in range(8)]}
DEEP = {**YARN, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}
GRANITE = {"attention_multiplier": 0.1, "embedding_multiplier": 2.0, "logits_scaling": 3.0, "residual_multiplier": 0.5}
# A name → the model type of transformers, and what differs from the smallest.
MODELS = {
    "llama": ("llama", SMALL | {"rope_theta": 500000.0}),
    "llama-linear": ("llama", SMALL | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama-llama3": ("llama", SMALL | {"rope_theta": 500000.0, "rope_scaling": LLAMA3}),
    "mistral": ("mistral", SMALL | WINDOW),
    "mixtral": ("mixtral", SMALL | LOCAL),
    "qwen2": ("qwen2", SMALL),
    "qwen2-yarn": ("qwen2", SMALL | {"rope_scaling": YARN}),
    "qwen3": ("qwen3", SMALL | {"head_dim": 32}),
    "qwen2_moe": ("qwen2_moe", SMALL | EXPERTS | {"shared_expert_intermediate_size": 48}),
    "qwen3_moe": ("qwen3_moe", SMALL | EXPERTS | {"head_dim": 32, "norm_topk_prob": True}),
    "gemma": ("gemma", SMALL | {"head_dim": 32}),
    "gemma2": ("gemma2", SMALL | GEMMA),
    "gemma3": ("gemma3_text", SMALL | GEMMA | {"num_hidden_layers": 6}),
    "phi": ("phi", SMALL | {"num_key_value_heads": 4, "intermediate_size": 256}),
    "phi3-longrope": ("phi3", SMALL | {"rope_scaling": LONG, "original_max_position_embeddings": 64}),
    "stablelm": ("stablelm", SMALL | {"partial_rotary_factor": 0.5}),
    "starcoder2": ("starcoder2", SMALL),
    "gpt2": ("gpt2", GPT),
    "gpt_bigcode": ("gpt_bigcode", GPT),
    "gpt_neox": ("gpt_neox", PLAIN),
    "bloom": ("bloom", {"hidden_size": 64, "n_layer": 4, "n_head": 4, "vocab_size": VOCABULARY}),
    "falcon": ("falcon", FALCON),
    "mpt": ("mpt", {"d_model": 64, "n_layers": 4, "n_heads": 4, "vocab_size": VOCABULARY, "max_seq_len": 256}),
    "cohere": ("cohere", SMALL),
    "cohere2": ("cohere2", SMALL | WINDOW | {"rotary_pct": 1.0}),
    "olmo": ("olmo", SMALL),
    "olmo2": ("olmo2", SMALL),
    "olmoe": ("olmoe", SMALL | {"num_experts": 4, "num_experts_per_tok": 2}),
    "granite": ("granite", SMALL | GRANITE),
    "granitemoe": ("granitemoe", SMALL | LOCAL | GRANITE),
    "granitemoehybrid": ("granitemoehybrid", SMALL | LOCAL | GRANITE | HYBRID | {"shared_intermediate_size": 32}),
    "nemotron": ("nemotron", SMALL),
    "exaone4": ("exaone4", SMALL | WINDOW),
    "glm4": ("glm4", SMALL | {"head_dim": 16}),
    "deepseek_v3": ("deepseek_v3", SMALL | LATENT | {"rope_scaling": DEEP, "num_nextn_predict_layers": 0}),
    "gpt_oss": ("gpt_oss", SMALL | LOCAL | WINDOW | {"head_dim": 32}),
    "smollm3": ("smollm3", SMALL),
    "llama4": ("llama4_text", SMALL | {"head_dim": 16, "num_local_experts": 4, "intermediate_size_mlp": 128}),
    "hunyuan": ("hunyuan_v1_dense", SMALL | {"head_dim": 16}),
    "lfm2": ("lfm2", SMALL | {"layer_types": ["conv", "full_attention"] * 2}),
    "bert": ("bert", PLAIN),
    "modernbert": ("modernbert", SMALL | {"num_hidden_layers": 6, "local_attention": 64, "cls_token_id": 1, "sep_token_id": 2}),
    "dots1": ("dots1", SMALL | ROUTED | {"head_dim": 16}),
    "arcee": ("arcee", SMALL),
    "seed_oss": ("seed_oss", SMALL | {"head_dim": 16}),
}
HUB_NAMES = {"mpt": "MPTForCausalLM"}
WORDS = ("<s>", "<|endoftext|>", "[gMASK]", "[MASK]", "<sop>", "<eop>", "<|user|>", "<|observation|>", "<|assistant|>")
PIECES = ("llama", "mistral", "mixtral", "gemma", "phi3", "hunyuan", "nemotron")


def make(folder: Path, kind: str, said: dict) -> None:
    """Save one model with random weights."""
    import transformers

    config = transformers.AutoConfig.for_model(kind, **said)
    auto = transformers.AutoModel if kind.endswith("bert") else transformers.AutoModelForCausalLM
    auto.from_config(config).save_pretrained(folder)
    if kind in HUB_NAMES:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": [HUB_NAMES[kind]]}))


def pieces() -> bytes:
    """A small vocabulary of sentencepiece."""
    import sentencepiece

    made, texts = io.BytesIO(), iter([f"hello world, this is text {number}" for number in range(200)])
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts, model_writer=made, vocab_size=300, byte_fallback=True, hard_vocab_limit=False, minloglevel=9,
        model_type="bpe", pad_id=3,
    )  # fmt: skip
    return made.getvalue()


def byte_tokens() -> str:
    """A tokenizer.json that knows the 256 bytes and the words that some architectures ask for."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in visible] + [chr(256 + number) for number in range(256 - len(visible))]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    return json.dumps({
        "version": "1.0", "pre_tokenizer": level, "decoder": level,
        "added_tokens": [{"id": 256 + at, "content": word, **plain} for at, word in enumerate(WORDS)],
        "model": {"type": "BPE", "byte_fallback": False, "vocab": vocabulary, "merges": []},
    })  # fmt: skip


def convert(tree: Path, model: Path, outfile: Path) -> str:
    """Run a tree's script in this process; what it said where it failed."""
    said = io.StringIO()
    sys.argv = ["convert_hf_to_gguf.py", str(model), "--outtype", "f32", "--outfile", str(outfile)]
    logging.root.handlers.clear()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            runpy.run_path(str(tree / "convert_hf_to_gguf.py"), run_name="__main__")
    except SystemExit as error:
        return said.getvalue() if error.code else ""
    except Exception:
        return traceback.format_exc()
    return ""


def use(tree: Path) -> None:
    """Import from this tree from now on. Its list of pre-tokenizers knows none of ours: tokens are not what is tried here."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("conversion", "gguf")]:
        del sys.modules[name]
    sys.path[:0] = [str(tree), str(tree / "gguf-py")]
    from conversion import base

    base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"


def main(folder: Path, trees: list[Path]) -> int:
    """Make and convert all; how many conversions failed."""
    import torch
    import transformers

    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    tokens, sentences, failed = byte_tokens(), pieces(), 0
    for name, (kind, said) in MODELS.items():
        model = folder / "models" / name
        make(model, kind, said)
        (model / "tokenizer.json").write_text(tokens)
        (model / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
        if kind.startswith(PIECES) and kind != "llama4_text":
            (model / "tokenizer.model").write_bytes(sentences)
    for tree in trees:
        use(tree)
        (folder / tree.name).mkdir()
        for name in MODELS:
            if why := convert(tree, folder / "models" / name, folder / tree.name / f"{name}.gguf"):
                failed += 1
                print(f"{tree.name} {name}: {why[-1500:]}", file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), [Path(tree) for tree in sys.argv[2:]]) > 0)
