"""Tiny bases and an adapter of each kind as PEFT saves them, with what PEFT makes of both: peft_kinds.py FOLDER.

For each kind, and some together: adapters/KIND, merged/KIND (PEFT's merge in float32, rounded once) and an entry of kinds.json:
base, adapters, log-probabilities with the adapters at work and not merged, how far these are from the base's and from those of
PEFT's merge.
"""

import json
import sys
import warnings
from pathlib import Path

import peft
import safetensors.torch
import torch
import transformers

warnings.filterwarnings("ignore")
FOLDER = Path(sys.argv[1])
TOKENS = [3, 17, 42, 9, 28, 61, 5]
SHAPE = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
BASES = {
    "llama": transformers.LlamaConfig(**SHAPE, tie_word_embeddings=False),
    "tied": transformers.LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "qwen2": transformers.Qwen2Config(**SHAPE, tie_word_embeddings=False),
    "gpt2": transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, eos_token_id=2),
    "gemma3": transformers.Gemma3TextConfig(**SHAPE, sliding_window=4, tie_word_embeddings=True),
    "phi3": transformers.Phi3Config(**SHAPE),
    "qwen3moe": transformers.Qwen3MoeConfig(**SHAPE, **EXPERTS, num_experts=4),
    "mixtral": transformers.MixtralConfig(**SHAPE, num_local_experts=4),
    "gptoss": transformers.GptOssConfig(**(SHAPE | {"intermediate_size": 32}), num_local_experts=4, num_experts_per_tok=2),
    "granitemoe": transformers.GraniteMoeConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2),
    "llava": transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**SHAPE, tie_word_embeddings=False),
        vision_config=transformers.CLIPVisionConfig(**VISION, projection_dim=32), image_token_index=63,
    ),
}  # fmt: skip
BASES["llava-tied"] = transformers.LlavaConfig(
    text_config=transformers.LlamaConfig(**SHAPE, tie_word_embeddings=True), tie_word_embeddings=True,
    vision_config=transformers.CLIPVisionConfig(**VISION, projection_dim=32), image_token_index=63,
)  # fmt: skip
TIED = ("tied", "gpt2", "gemma3", "llava-tied")
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PATTERNS = {"rank_pattern": {"k_proj": 2}, "alpha_pattern": {r"model\.layers\.\d+\..*q_proj": 16, "v_proj": 3}}
REPEATED = [[0, 2], [1, 3], [0, 1]]
# Each kind: its base, and the arguments of its config. "=": what is done besides, by the names below.
KINDS = {
    "lora": ("llama", {"target_modules": LINEAR}),
    "rslora": ("llama", {"target_modules": LINEAR, "use_rslora": True}),
    "patterns": ("llama", {"target_modules": LINEAR, "use_rslora": True, **PATTERNS}),
    "dora": ("llama", {"target_modules": LINEAR, "use_dora": True}),
    "dora-patterns": ("llama", {"target_modules": LINEAR, "use_dora": True, "use_rslora": True, **PATTERNS}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "head": ("llama", {"target_modules": ["lm_head", "q_proj"]}),
    "dora-embedding": ("llama", {"target_modules": ["embed_tokens", "lm_head", "q_proj"], "use_dora": True}),
    "tied-embedding": ("tied", {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied-head": ("tied", {"target_modules": ["lm_head", "q_proj"]}),
    "tied-both": ("tied", {"target_modules": ["embed_tokens", "lm_head"]}),
    "tied-dora": ("tied", {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True}),
    # Its class multiplies what it looks up.
    "scaled-embedding": ("gemma3", {"target_modules": ["embed_tokens", "q_proj"]}),
    "scaled-dora": ("gemma3", {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True}),
    "scaled-tokens": ("gemma3", {"target_modules": ["q_proj"], "trainable_token_indices": [3, 42]}),
    "ensure": ("tied", {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}),
    "ensure-both": ("tied", {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True}),
    "lora-bias": ("qwen2", {"target_modules": ["q_proj", "v_proj"], "lora_bias": True, "use_rslora": True}),
    "bias-all": ("qwen2", {"target_modules": ["q_proj"], "bias": "all"}),
    "bias-lora-only": ("qwen2", {"target_modules": ["q_proj"], "bias": "lora_only"}),
    "saved": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head", "norm"]}),
    "tied-saved": ("tied", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "tied-saved-both": ("tied", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    "ensure-saved": ("tied", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "tokens": ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": [3, 42]}),
    "tied-tokens": ("tied", {"target_modules": ["q_proj"], "trainable_token_indices": [3, 42]}),
    "tied-tokens-both": (
        "tied", {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3, 42], "lm_head": [5, 9]}},
    ),
    "head-tokens": ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [9, 3]}}),
    "only-tokens": ("llama", {"target_modules": ["embed_tokens"], "token_indices": [3, 42]}),
    "only-tokens-tied": ("tied", {"target_modules": ["embed_tokens"], "token_indices": [3, 42]}),
    "resized": ("llama", {"target_modules": ["q_proj"]}, 70),
    "tied-resized": ("tied", {"target_modules": ["q_proj"]}, 70),
    "resized-embedding": ("llama", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}, 70),
    "tied-resized-embedding": ("tied", {"target_modules": ["q_proj", "embed_tokens"]}, 70),
    "resized-saved": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}, 70),
    "resized-tokens": ("tied", {"target_modules": ["q_proj"], "trainable_token_indices": [3, *range(64, 70)]}, 70),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "conv1d-dora": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": True}),
    "conv1d-embedding": ("gpt2", {"target_modules": ["wte", "c_attn"], "fan_in_fan_out": True}),
    "repeated": ("llama", {"target_modules": ["q_proj", "down_proj"], "layer_replication": REPEATED}),
    "named": ("llama", {"target_modules": LINEAR, "use_dora": True}),
    "fused": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"]}),
    "all-linear-experts": ("qwen3moe", {"target_modules": "all-linear"}),
    "parameters": (
        "qwen3moe",
        {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"]},
    ),
    "one-parameter": ("qwen3moe", {"target_modules": [], "target_parameters": ["experts.down_proj"], "use_rslora": True}),
    "mixtral": ("mixtral", {"target_modules": ["q_proj"], "target_parameters": ["gate_up_proj", "down_proj", "gate.weight"]}),
    "experts-of-4": ("qwen3moe", {"target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"]}),
    "mixtral-of-4": ("mixtral", {"target_modules": ["q_proj", "w1", "w2", "w3"]}),
    "stacks": ("gptoss", {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}),
    "stacked-modules": (
        "granitemoe", {"target_modules": ["q_proj"], "target_parameters": ["input_linear.weight", "output_linear.weight"]},
    ),
    "vision": ("llava", {"target_modules": ["q_proj", "fc1", "linear_2"]}),
    "vision-tied": ("llava-tied", {"target_modules": ["embed_tokens", "q_proj"]}),
    "pissa": ("llama", {"target_modules": LINEAR, "init_lora_weights": "pissa"}),
    "pissa-converted": ("llama", {"target_modules": LINEAR, "init_lora_weights": "pissa"}),
    "olora": ("llama", {"target_modules": LINEAR, "init_lora_weights": "olora"}),
    "orthogonal": ("llama", {"target_modules": LINEAR, "init_lora_weights": "orthogonal"}),
    "mica": ("llama", {"target_modules": LINEAR, "init_lora_weights": "mica"}),
}  # fmt: skip


def make_base(name: str) -> None:
    config = BASES[name]
    kind = transformers.AutoModelForImageTextToText if name.startswith("llava") else transformers.AutoModelForCausalLM
    model = kind.from_config(config)
    generator = torch.Generator().manual_seed(7)
    for key, tensor in model.named_parameters():
        if tensor.dim() > 1:
            scale = 0.5 if "embed" in key or "wte" in key else 1.0
            tensor.data = torch.randn(tensor.shape, generator=generator) * scale / tensor.shape[-1] ** 0.5
        elif "bias" in key:
            tensor.data = torch.randn(tensor.shape, generator=generator) * 0.1
    model.to(torch.bfloat16).save_pretrained(FOLDER / "bases" / name)


def load(base: str, rows: int | None):
    kind = transformers.AutoModelForImageTextToText if base.startswith("llava") else transformers.AutoModelForCausalLM
    model = kind.from_pretrained(FOLDER / "bases" / base, dtype=torch.float32)
    if rows:
        torch.manual_seed(3)
        model.resize_token_embeddings(rows, mean_resizing=False)
    return model.eval()


def answers(model) -> torch.Tensor:
    with torch.no_grad():
        return torch.log_softmax(model(input_ids=torch.tensor([TOKENS])).logits[0].double(), -1)


def train(model, names: str) -> None:
    """Move what is trainable, as a training would."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.requires_grad:
                noise = torch.rand(tensor.shape, generator=generator) - 0.5
                tensor.add_(noise * (0.05 if "pissa" in names or "olora" in names else 0.2))


def save(name: str, base: str, keywords: dict, rows: int | None) -> None:
    folder = FOLDER / "adapters" / name
    torch.manual_seed(5)
    if name.startswith("only-tokens"):
        config = peft.TrainableTokensConfig(task_type="CAUSAL_LM", **keywords)
    else:
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=6, **keywords)
    if name.endswith("-of-4"):
        return save_as_4(name, base, config)
    model = peft.get_peft_model(load(base, rows), config)
    if name.startswith(("pissa", "olora")):
        kept = model.peft_config["default"].init_lora_weights
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(folder / "initial")
        model.peft_config["default"].init_lora_weights = kept
    train(model, name)
    more = {"path_initial_model_for_weight_conversion": str(folder / "initial")} if name == "pissa-converted" else {}
    model.save_pretrained(folder, **more)
    if name == "named":
        path = folder / "adapter_model.safetensors"
        safetensors.torch.save_file({rename(key): tensor for key, tensor in safetensors.torch.load_file(path).items()}, path)


def save_as_4(name: str, base: str, config: peft.LoraConfig) -> None:
    """An adapter as transformers 4 had one, with a module for each expert of a file."""
    generator = torch.Generator().manual_seed(11)
    tensors = {}
    for key, shape in shapes_of(FOLDER / "bases" / base / "model.safetensors").items():
        module = key.removesuffix(".weight")
        if module.rpartition(".")[2] in config.target_modules:
            for part, size in (("A", (config.r, shape[1])), ("B", (shape[0], config.r))):
                noise = torch.rand(size, generator=generator) - 0.5
                tensors[f"base_model.model.{module}.lora_{part}.weight"] = noise * 0.4
    config.save_pretrained(FOLDER / "adapters" / name)
    safetensors.torch.save_file(tensors, FOLDER / "adapters" / name / "adapter_model.safetensors")


def shapes_of(path: Path) -> dict:
    return {key: tensor.shape for key, tensor in safetensors.torch.load_file(path).items()}


def rename(key: str) -> str:
    return key.replace(".lora_A.", ".lora_A.german.").replace(".lora_B.", ".lora_B.german.").replace("_vector", "_vector.german")


def judge(name: str, base: str, keywords: dict, rows: int | None = None) -> dict:
    save(name, base, keywords, rows)
    plain = answers(load(base, rows))
    adapter = FOLDER / "adapters" / ("dora" if name == "named" else name)  # PEFT itself cannot read those names
    model = peft.PeftModel.from_pretrained(load(base, rows), adapter).eval()
    unmerged = answers(model)
    merged = model.merge_and_unload()
    worst = float((answers(merged) - unmerged).abs().max())
    if worst > 0.001 and base in TIED and not keywords.get("ensure_weight_tying"):
        # PEFT's merge of one end moves the other as well. Of a base with two matrices from the start it is right.
        merged = peft.PeftModel.from_pretrained(untied(base, rows), adapter).merge_and_unload()
        worst = float((answers(merged) - unmerged).abs().max())
    if name != "repeated":  # transformers cannot save what shares its layers
        merged.to(torch.bfloat16).save_pretrained(FOLDER / "merged" / name)
    moved = float((unmerged - plain).abs().max())
    return {"base": base, "adapters": [name], "answers": unmerged.tolist(), "moved": moved, "worst": worst}


def judge_both(base: str, first: str, second: str) -> dict:
    """Two adapters at work together."""
    model = peft.PeftModel.from_pretrained(load(base, None), FOLDER / "adapters" / first, adapter_name="first")
    model.load_adapter(FOLDER / "adapters" / second, adapter_name="second")
    model.base_model.set_adapter(["first", "second"])
    unmerged = answers(model.eval())
    moved = min(float((unmerged - answers(load(base, None))).abs().max()), float((unmerged - one_of(base, first)).abs().max()))
    merged = model.merge_and_unload()
    worst = float((answers(merged) - unmerged).abs().max())
    merged.to(torch.bfloat16).save_pretrained(FOLDER / "merged" / f"{first}+{second}")
    return {"base": base, "adapters": [first, second], "answers": unmerged.tolist(), "moved": moved, "worst": worst}


def one_of(base: str, name: str) -> torch.Tensor:
    return answers(peft.PeftModel.from_pretrained(load(base, None), FOLDER / "adapters" / name).eval())


def untied(base: str, rows: int | None):
    model = load(base, rows)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.get_input_embeddings().weight.detach().clone())
    return model


for name in BASES:
    make_base(name)
results = {name: judge(name, *given) for name, given in KINDS.items()}
results |= {"+".join(pair): judge_both("llama", *pair) for pair in (("lora", "patterns"), ("embedding", "head"))}
(FOLDER / "kinds.json").write_text(json.dumps(results))
