"""Models and adapters of several kinds, merged by merge_by_peft.py: run by the reference environment's python.

Called as peft_merges.py SCRIPT FOLDER. Says as JSON for each case what the script answered, or its refusal, how far the merged
model's logits are from the unmerged adapters', and which tensors of the files have other bytes than the base's.
"""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file
from safetensors.torch import save_file

TOKENS = torch.arange(3, 35)[None]
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
LAYERS = {"target_modules": ["q_proj", "down_proj"]}


def script(path: str) -> Any:
    place = importlib.util.spec_from_file_location("merge_by_peft", path)
    assert place and place.loader
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


def bases(folder: Path) -> None:
    """A Llama in two files, a tied one, and a Mixtral, whose experts transformers stacks in memory, all in bfloat16."""
    llama = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=False)
    tied = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True)
    mixtral = transformers.MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=2)
    for name, config in (("llama", llama), ("tied", tied), ("mixtral", mixtral)):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
        model.save_pretrained(folder / name, max_shard_size="30KB" if name == "llama" else "5GB")
    shutil.copytree(folder / "tied", folder / "both")
    tensors = load_file(folder / "tied" / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "both" / "model.safetensors", metadata={"format": "pt"})


def adapter(folder: Path, base: str, name: str, config: Any) -> None:
    """An adapter that changes its model, as PEFT saves it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / base, dtype=torch.float32)
    torch.manual_seed(1)
    model = peft.get_peft_model(model, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) / 10
    model.save_pretrained(folder / name)


def logits(folder: Path, adapter: Path | None = None) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, adapter) if adapter else model
    return model.eval()(input_ids=TOKENS).logits


def bits(folder: Path) -> dict[str, bytes]:
    """Each tensor's file, dtype and bytes, in the order of the files."""
    content: dict[str, bytes] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.offset_keys():
                tensor = file.get_tensor(name)
                content[f"{path.name} {name} {tensor.dtype}"] = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    return content


def merge(module: Any, folder: Path, base: str, adapters: dict[str, float]) -> dict[str, Any]:
    """What the script answers, or its refusal."""
    asked, answer = folder / "asked.json", folder / "answer.json"
    shutil.rmtree(folder / "merged", ignore_errors=True)
    entries = [{"folder": str(folder / name), "weight": weight} for name, weight in adapters.items()]
    question = {"base": str(folder / base), "adapters": entries, "dest": str(folder / "merged")}
    asked.write_text(json.dumps(question))
    try:
        module.main(asked, answer)
    except SystemExit as end:
        return {"refusal": str(end.code)}
    return dict(json.loads(answer.read_text()))


def case(module: Any, folder: Path, base: str, adapters: dict[str, float]) -> dict[str, Any]:
    """What becomes of one merge."""
    answer, dest = merge(module, folder, base, adapters), folder / "merged"
    if "refusal" in answer:
        return answer
    before, after = bits(folder / base), bits(dest)
    answer["same"] = list(before) == list(after)
    answer["moved"] = [name.split()[1] for name in before if before[name] != after.get(name)]
    if list(adapters.values()) != [1]:
        return {**answer, "off": sum_off(folder, base, adapters)}
    for name in ("config.json", "model.safetensors.index.json"):
        if (folder / base / name).exists():
            shutil.copy(folder / base / name, dest)
    due = logits(folder / base, folder / next(iter(adapters)))
    off, effect = ((logits(place) - due).abs().max() for place in (dest, folder / base))
    return {**answer, "off": float(off), "effect": float(effect)}


def sum_off(folder: Path, base: str, adapters: dict[str, float]) -> float:
    """How far the files are from the base with each adapter's own update, by its weight, rounded once."""
    start = values(folder / base)
    due = dict(start)
    for name, weight in adapters.items():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder / base, dtype=torch.float32)
        alone = peft.PeftModel.from_pretrained(model, folder / name).merge_and_unload().state_dict()
        due = {key: value + weight * (alone[key] - start[key]) for key, value in due.items()}
    return max(float((value - due[name].bfloat16().float()).abs().max()) for name, value in values(folder / "merged").items())


def values(folder: Path) -> dict[str, Any]:
    return {name: value.float() for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


def main(path: str, place: str) -> None:
    module, folder = script(path), Path(place)
    bases(folder)
    kinds = {
        "loha": peft.LoHaConfig(r=4, alpha=8, **LAYERS),
        "ia3": peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
        "lora": peft.LoraConfig(r=4, lora_alpha=8, target_modules=["v_proj", "up_proj"], task_type="CAUSAL_LM"),
        "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        "huge": peft.LoHaConfig(r=4, alpha=1e40, **LAYERS),
    }
    for name, config in kinds.items():
        adapter(folder, "llama", name, config)
    adapter(folder, "mixtral", "experts", peft.LoraConfig(r=2, lora_alpha=8, target_parameters=["experts.down_proj"]))
    adapter(folder, "tied", "head", peft.LoHaConfig(r=2, alpha=2, target_modules=["q_proj"]))
    adapter(folder, "tied", "own", peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    cases = {
        "loha": ("llama", {"loha": 1}),
        "ia3": ("llama", {"ia3": 1}),
        "several": ("llama", {"loha": 0.5, "lora": -2}),
        "half": ("llama", {"ia3": 0.5}),
        "experts": ("mixtral", {"experts": 1}),
        "tied": ("tied", {"head": 1}),
        "both ends": ("both", {"head": 1}),
        "a head of its own": ("tied", {"own": 1}),
        "prompt": ("llama", {"prompt": 1}),
        "another base": ("mixtral", {"loha": 1}),
        "absent": ("llama", {"nowhere": 1}),
        "huge": ("llama", {"huge": 1}),
    }
    with torch.no_grad():
        answers = {name: case(module, folder, base, dict(adapters)) for name, (base, adapters) in cases.items()}
    print(json.dumps(answers))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
