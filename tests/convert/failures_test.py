"""Upstream's failures are explained: real runs of its scripts at four tags on spoilt inputs, and literal texts for the rest."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llamacpp_orchestrator.convert import commands
from llamacpp_orchestrator.convert import quantize
from llamacpp_orchestrator.convert import warm_worker
from llamacpp_orchestrator.convert.failures import explain
from llamacpp_orchestrator.convert.failures import is_certain
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.meanings import LONGEST
from llamacpp_orchestrator.meanings import table
from llamacpp_orchestrator.system.command import script_env
from tests.support import makers

Spoil = Callable[[Path], Any]
WEIGHTS, ADAPTER = "model.safetensors", "adapter_model.safetensors"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"
LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


def config(**changes: Any) -> Spoil:
    return lambda model: makers.edit(model / "config.json", **changes)


def quantized(**said: Any) -> Spoil:
    return config(quantization_config=said)


def written(name: str, content: bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(content)


def without(*names: str) -> Spoil:
    return lambda folder: [(folder / name).unlink() for name in names]


def cut(name: str, length: int) -> Spoil:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:length])


def index(*more: str, file: str = WEIGHTS) -> Spoil:
    def spoil(model: Path) -> None:
        named = dict.fromkeys([*makers.names(model / WEIGHTS), *more], file)
        (model / "model.safetensors.index.json").write_text(f'{{"weight_map": {named}}}'.replace("'", '"'))

    return spoil


def added(file: str, **tensors: makers.Tensor) -> Spoil:
    return lambda folder: makers.tensors(folder / file, lambda found: found | tensors)


def extra_beside_index(model: Path) -> None:
    index()(model)
    added(WEIGHTS, **{"model.extra.weight": makers.zeros(1)})(model)


def of_type(kind: str) -> Spoil:
    def change(found: dict[str, makers.Tensor]) -> dict[str, makers.Tensor]:
        return {
            name: (kind, shape, body[: len(body) // 4]) if "down" in name else (_, shape, body)
            for name, (_, shape, body) in found.items()
        }

    return lambda model: makers.tensors(model / WEIGHTS, change)


def gptq_of_three_bits(model: Path) -> None:
    packed = {"g_idx": (128,), "qweight": (12, 64), "qzeros": (1, 6), "scales": (1, 64)}
    quantized(quant_method="gptq", bits=3)(model)
    more = {f"model.layers.0.mlp.down_proj.{end}": ("I32", *makers.zeros(*shape)[1:]) for end, shape in packed.items()}
    makers.tensors(model / WEIGHTS, lambda found: {k: v for k, v in found.items() if "layers.0.mlp.down" not in k} | more)


def bytes_that_are_too_many(model: Path) -> None:
    makers.byte_tokenizer(model, 300)
    config(vocab_size=256)(model)


def own_code(model: Path) -> None:
    without("tokenizer.model")(model)
    makers.edit(model / "tokenizer_config.json", tokenizer_class="Foo", auto_map={"AutoTokenizer": ["foo.Foo", None]})


def renamed(change: Callable[[str], str]) -> Spoil:
    return lambda model: makers.tensors(model / WEIGHTS, lambda found: {change(name): tensor for name, tensor in found.items()})


def extra(end: str) -> Spoil:
    return added(WEIGHTS, **{f"model.layers.0.self_attn.q_proj.{end}": makers.zeros(64)})


def card(*lines: str) -> Spoil:
    return written("README.md", "\n".join(("---", *lines, "---", "")).encode())


def tokenizer(**said: Any) -> Spoil:
    def spoil(model: Path) -> None:
        makers.byte_tokenizer(model)
        makers.edit(model / "tokenizer_config.json", **said)

    return spoil


def no_merges(model: Path) -> None:
    makers.byte_tokenizer(model)
    makers.edit(model / "tokenizer.json", model={"type": "BPE", "vocab": {"a": 0}})


def of_architecture(name: str, **keys: Any) -> Spoil:
    return config(architectures=[name], **keys)


def pair(name: str, rows: int, columns: int) -> Spoil:
    def spoil(folder: Path) -> None:
        ends = {"lora_A": (8, columns), "lora_B": (rows, 8)}
        named = {f"base_model.model.{name}.{end}.weight": makers.zeros(*shape) for end, shape in ends.items()}
        makers.tensors(folder / ADAPTER, lambda found: named)

    return spoil


def nothing(folder: Path) -> None:
    """Leave it as it is."""


# What is spoilt → how, what is passed on, and words of the cause that it must be explained by.
MODELS: dict[str, tuple[Spoil, str, str]] = {
    "architecture": (config(architectures=["FooForCausalLM"]), "", "does not know the architecture FooForCausalLM"),
    "no architecture": (config(architectures=None), "", "names no `architectures`"),
    "no config": (without("config.json"), "", "names no `architectures`"),
    "cut config": (cut("config.json", 50), "", "JSON file of the model or adapter is damaged"),
    "config without layers": (config(num_hidden_layers=None, model_type="foo"), "", "has none of 'n_layers'"),
    "fewer layers": (config(num_hidden_layers=1), "", "no place for a tensor (model.layers.1."),
    "heads": (config(num_attention_heads=3), "", "does not fit the weights"),
    "no tokenizer": (without("tokenizer.model", "tokenizer_config.json"), "", "no tokenizer that this tag can read"),
    "tokenizer.model": (written("tokenizer.model", POINTER), "", "tokenizer.model is damaged"),
    "unknown bytes": (makers.byte_tokenizer, "", "does not know the model's tokenizer"),
    "too many tokens": (bytes_that_are_too_many, "", "more tokens than the model"),
    "code": (own_code, "", "its own Python code"),
    "cut": (lambda model: cut(WEIGHTS, -1000)(model), "", "cut, damaged"),
    "cut header": (cut(WEIGHTS, 100), "", "cut, damaged"),
    "empty": (written(WEIGHTS, b""), "", "cut, damaged"),
    "pointer": (written(WEIGHTS, POINTER), "", "Git LFS pointer"),
    "no header": (written(WEIGHTS, makers.safetensors(b"x" * 100, length=20)), "", "cut, damaged"),
    "missing tensor": (index("model.layers.9.x"), "", "in no file: 'model.layers.9.x'"),
    "missing shard": (index(file="model-00001-of-00002.safetensors"), "", "is not there: "),
    "extra tensor": (extra_beside_index, "", "index of the weight files"),
    "index": (written("model.safetensors.index.json", b'{"weight_map": 3}'), "", "index of the weight files"),
    "bitsandbytes": (quantized(quant_method="bitsandbytes"), "", "cannot read (bitsandbytes)"),
    "format": (
        quantized(quant_method="compressed-tensors", format="foo", config_groups={"a": {"weights": {}}}),
        "",
        "'foo' for method 'compressed-tensors'",
    ),
    "groups": (
        quantized(quant_method="compressed-tensors", format="foo", config_groups={"a": {"weights": {}}, "b": {}}),
        "",
        "multiple config groups",
    ),
    "3 bits": (gptq_of_three_bits, "", "3-bit gptq"),
    "packed": (added(WEIGHTS, **{"model.layers.0.mlp.up_proj.weight.absmax": makers.zeros(4)}), "", "are quantized already (m"),
    "type": (of_type("F4"), "", "of a type that this tag cannot read (F4)"),
    "pickle": (lambda model: (without(WEIGHTS)(model), written("pytorch_model.bin", b"nonsense")(model)), "", "a pickle"),
    "front matter": (written("README.md", b"---\na: [\n---\n"), "", "front matter of README.md"),
    "a card, not UTF-8": (written("README.md", b"---\nlicense: \xff\n---\n"), "", "README.md of the model or adapter is not"),
    "option": (nothing, "--nope", "does not have the option --nope"),
    "choice": (nothing, "--outtype q4_k_m", "take an option so: --outtype: invalid choice: 'q4_k_m'"),
    "no value": (nothing, "--metadata", "--metadata: expected one argument"),
    "ambiguous": (nothing, "--split-max 3", "ambiguous option: --split-max"),
    "number": (nothing, "--split-max-tensors x", "invalid int value"),
    "size": (nothing, "--split-max-size 4X", "Invalid split size: 4X"),
    "temporary": (nothing, "--split-max-size 1M --use-temp-file", "do not go together, or not with this model: Cannot use temp"),
    "mtp": (nothing, "--mtp", "or not with this model: --mtp"),
    "mistral": (nothing, "--mistral-format", "mistral-common"),
    # What was saved out of a wrapper, or with more than a model has.
    "torch.compile": (renamed(lambda name: f"_orig_mod.{name}"), "", "by torch.compile (_orig_mod."),
    "DataParallel": (renamed(lambda name: f"module.{name}"), "", "inside of DataParallel (module."),
    "FSDP": (renamed(lambda name: name.replace("model.", "_fsdp_wrapped_module.model.")), "", "FSDP or DeepSpeed trained"),
    "PEFT": (renamed(lambda name: f"base_model.model.{name}"), "", "PEFT's adapter in it, not merged (base_model."),
    "base_layer": (renamed(lambda name: name.replace("q_proj.", "q_proj.base_layer.")), "", "adapter in it, not merged (model."),
    "lora": (extra("lora_A.default.weight"), "", "adapter in it, not merged (model."),
    "parametrized": (extra("parametrizations.weight.original0"), "", "torch's parametrizations"),
    "MLX": (extra("scales"), "", "quantized by MLX (model.layers.0.self_attn.q_proj.scales)"),
    "input scale": (extra("input_scale"), "", "are quantized already (m"),
    "group index": (extra("weight_g_idx"), "", "are quantized already (m"),
    "value head": (added(WEIGHTS, **{"v_head.summary.weight": makers.zeros(1, 64)}), "", "more than a language model (v_head"),
    "MTP tensor": (added(WEIGHTS, **{"model.layers.0.eh_proj.weight": makers.zeros(64, 64)}), "", "(MTP) that this tag"),
    "other names": (renamed(lambda name: name.replace("model.", "tower.")), "", "no place for a tensor (tower."),
    "scalar": (added(WEIGHTS, **{f"{LAYER[17:]}.weight": makers.zeros()}), "", "not the shape that config.json gives"),
    "experts": (
        lambda model: (
            of_architecture("MixtralForCausalLM", num_local_experts=2, num_experts_per_tok=2)(model),
            added(WEIGHTS, **{"model.layers.0.block_sparse_moe.experts.0.w1.weight": makers.zeros(128, 64)})(model),
        ),
        "",
        "lack some of a layer's experts",
    ),
    "no MTP layers": (of_architecture("Qwen3NextForCausalLM"), "", "multi-token prediction (MTP), and the weights have none"),
    # Values of another kind than upstream expects.
    "text for a number": (config(rms_norm_eps="1e-5"), "", "a number in a JSON file of the model"),
    "fraction": (config(max_position_embeddings=512.5), "", "a number in a JSON file of the model"),
    "generation": (written("generation_config.json", b'{"top_k": "a"}'), "", "a number in a JSON file of the model"),
    "layers as text": (config(num_hidden_layers="2"), "", "did not expect what it read in config.json (TypeError"),
    "no heads": (config(num_attention_heads=0), "", "not the shape that config.json gives"),
    "heads below zero": (config(num_key_value_heads=-1), "", "does not fit the weights"),
    "rope as text": (config(rope_scaling="linear"), "", "did not expect what it read in config.json ("),
    "config of no keys": (written("config.json", b"[]"), "", "config.json is no object"),
    "architectures of none": (config(architectures=[]), "", "`architectures`"),
    "key of the family": (of_architecture("Gemma2ForCausalLM"), "", "config.json has no `attn_logit_softcapping`"),
    "language no": (card("language: [en, no]"), "", "a bare `no` is false"),
    "version": (card("version: 1.10"), "", "a bare 1.10 is the number 1.1"),
    # Tokenizers.
    "extra tokens as a list": (tokenizer(extra_special_tokens=["<a>"]), "", "saved by a newer transformers"),
    "TokenizersBackend": (tokenizer(tokenizer_class="TokenizersBackend"), "", "transformers than this tag's (TokenizersBackend"),
    "token of no kind": (tokenizer(bos_token={"a": 1}), "", "did not expect what it read in the tokenizer's files (TypeError"),
    "no merges": (no_merges, "", "tokenizer.json is damaged"),
    "list for a tokenizer": (written("tokenizer_config.json", b"[]"), "", "read in the tokenizer's files (AttributeError"),
    "added token": (
        lambda model: makers.edit(model / "tokenizer_config.json", added_tokens_decoder={"3": {}}),
        "",
        "`content` in the model's files, and it is not there (it was reading the tokenizer's files)",
    ),
}  # fmt: skip
SMALL_A = {f"{LAYER}.lora_A.weight": makers.zeros(4, 64)}
HEAD = {"base_model.model.lm_head.weight": makers.zeros(32000, 64)}
OTHER = {f"{LAYER[:-6]}foo.lora_A.weight": makers.zeros(8, 64), f"{LAYER[:-6]}foo.lora_B.weight": makers.zeros(64, 8)}
ADAPTERS: dict[str, tuple[Spoil, Spoil, str]] = {
    "embeddings": (added(ADAPTER, **HEAD), nothing, "trains the vocabulary"),
    "DoRA": (added(ADAPTER, **{f"{LAYER}.lora_magnitude_vector": makers.zeros(64)}), nothing, "is a DoRA"),
    "more": (added(ADAPTER, **{f"{LAYER}.base_layer.bias": makers.zeros(64)}), nothing, "more than pairs of matrices"),
    "half a pair": (
        lambda folder: makers.tensors(folder / ADAPTER, lambda found: dict(list(found.items())[:-1])),
        nothing,
        "do not make pairs",
    ),
    "ranks": (added(ADAPTER, **SMALL_A), nothing, "do not make pairs"),
    "no alpha": (lambda folder: makers.edit(folder / "adapter_config.json", lora_alpha=None), nothing, "has no lora_alpha"),
    "no weights": (without(ADAPTER), nothing, "is not there: "),
    "cut config": (written("adapter_config.json", b"{"), nothing, "JSON file of the model or adapter"),
    "cut": (cut(ADAPTER, -10), nothing, "cut, damaged"),
    "short": (cut(ADAPTER, 60), nothing, "cut, damaged"),
    "pointer": (written(ADAPTER, POINTER), nothing, "Git LFS pointer"),
    "another base": (
        added(ADAPTER, **{f"{LAYER}.lora_B.weight": makers.zeros(60, 8)}),
        nothing,
        "does not fit the weights, or the adapter another base",
    ),
    "module": (
        added(ADAPTER, **OTHER),
        nothing,
        "no place for a matrix of the adapter",
    ),
    "architecture": (nothing, config(architectures=["FooForCausalLM"]), "does not know the architecture FooForCausalLM"),
    "quantized base": (nothing, quantized(quant_method="awq"), "cannot read (awq)"),
    "alpha": (lambda folder: makers.edit(folder / "adapter_config.json", lora_alpha="x"), nothing, "lora_alpha in adapter"),
    "norm": (pair("model.layers.0.input_layernorm", 64, 64), nothing, "cannot turn, cut or join a matrix"),
    "one dimension": (
        pair("backbone.layers.0.mixer.conv1d", 256, 64),
        of_architecture("MambaForCausalLM", state_size=16),
        "cannot turn, cut or join a matrix",
    ),
    "one expert": (
        pair("model.layers.0.block_sparse_moe.experts.0.w1", 128, 64),
        of_architecture("MixtralForCausalLM", num_local_experts=2, num_experts_per_tok=2),
        "some of a layer's experts, of which this tag wants all",
    ),
    "adapter with MTP": (nothing, of_architecture("Qwen3NextForCausalLM"), "multi-token prediction (MTP)"),
}  # fmt: skip
# No run makes these here, or none within a second; the place says where the words stand.
LITERAL = {
    "conversion/base.py, projectors": ("ValueError: Can not map tensor 'vision_tower.x'", "for images or sound have"),
    "gguf-py/gguf/gguf_writer.py": ("ValueError: Duplicated tensor name 'output.weight'", "twice (output.weight)"),
    "conversion/base.py, pieces": ("FileNotFoundError: File not found: /m/tokenizer.model", "from tokenizer.model alone"),
    "conversion/base.py": ("ValueError: vision_config / audio_config not found in hparams", "no vision or audio part"),
    "conversion/phi.py": ("NotImplementedError: The rope scaling type foo is not supported yet", "such a model: The rope"),
    "conversion/llava.py": ("ValueError: Unsupported hidden_act: tanh", "such a model: Unsupported hidden_act: tanh"),
    "conversion/llama.py": ("KeyError: 'intermediate_size_moe'", "looks for `intermediate_size_moe`"),
    "convert_hf_to_gguf.py": ("ERROR:hf-to-gguf:Error: /x/y is not a directory", "is not there: /x/y"),
    "convert_hf_to_gguf.py, together": ("ERROR:hf-to-gguf:--mtp, --no-nextn, and --dspark are mutually exclusive", "exclusive"),
    "Python, modules": ("ModuleNotFoundError: No module named 'sentencepiece'", "lacks the module sentencepiece"),
    "Python, names": ("ImportError: cannot import name 'Foo' from 'transformers' (/x)", "do not fit this tag (Foo)"),
    "Python, attributes": ("AttributeError: module 'torch' has no attribute 'float8_e8m0fnu'", "do not fit this tag (torch)"),
    "numpy": ("A module that was compiled using NumPy 1.x cannot be run in NumPy 2.2.6", "do not fit this tag"),
    "the fence": ("OSError: [Errno 7] Landlock: Argument list too long", "refused to fence the converter in"),
    "the fence, sockets": ("PermissionError: [Errno 13] Permission denied", "asked for the network"),
    "Python, rights": ("PermissionError: [Errno 13] Permission denied: '/x/y.gguf'", "/x/y.gguf may not be"),
    "Python, text": ("UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in position 0", "not UTF-8"),
    "nobody": ("something new", ""),
}  # fmt: skip


# The tags, the package that carries their trees, and what they convert (or end otherwise at, but never barely) of the above.
TAGS: dict[str, tuple[str, set[str]]] = {
    "b3878": (
        "0.3.1",
        {
            *(
                f"model {name}"
                for name in ("no config", "missing tensor", "missing shard", "extra tensor", "bitsandbytes", "format")
            ),
            *(f"model {name}" for name in ("groups", "3 bits", "mtp", "mistral", "no MTP layers", "generation", "rope as text")),
            *(f"adapter {name}" for name in ("embeddings", "quantized base", "norm", "one dimension", "adapter with MTP")),
        },
    ),
    "b9821": ("b9821", {"model no MTP layers", "adapter adapter with MTP"}),
    "b10605": ("b10605", set()),
    "b11434": ("b11434", set()),
}


def row(said: str) -> str:
    """The pattern by which a text is explained."""
    return next((row.pattern for row in table("convert", "scripts") if re.search(row.pattern, said)), "")


@pytest.mark.slow
@pytest.mark.parametrize("tag", TAGS)
def test_real_failures_are_explained(
    tag: str, tree: Callable[[str], Path], python: Path, data: Path, tmp_path: Path, shared_cache: Path
) -> None:
    package, otherwise = TAGS[tag]
    env, root, wrong, seen = script_env(shared_cache / "home"), tree(package), dict[str, str](), set[str]()
    warm = warm_worker.Warm(str(python), root, env, tmp_path / "warm.log")
    run = warm.convert if warm_worker.can_fork("linux" if Path("/proc").is_dir() else "") else warm_worker.run_alone
    cases = [(f"model {name}", *case) for name, case in MODELS.items()]
    cases += [(f"adapter {name}", *case) for name, case in ADAPTERS.items()]
    for number, (name, spoil, other, cause) in enumerate(cases):
        place = tmp_path / str(number)
        model = Path(shutil.copytree(data / "tiny-llama", place / "tiny-llama"))
        if isinstance(other, str):
            spoil(model)
            command = commands.model_command(str(python), root, model, place / "out.gguf", "f16", "x", tuple(other.split()))
        else:
            adapter = Path(shutil.copytree(data / "lora-a", place / "lora-a"))
            spoil(adapter)
            other(model)
            command = commands.adapter_command(str(python), root, model, adapter, place / "out.gguf", "f16", ())
        try:
            run(msgspec.structs.replace(command, env=env), place / "log", lambda said: None)
            wrong |= {} if name in otherwise else {name: "it did not fail"}
        except CommandFailed as error:
            seen.add(row(error.tail))
            told = cause in error.message or name in otherwise
            # Whatever it is, its likely cause comes first, and some way out.
            if not told or error.message.startswith("`convert") or error.hint in ("", warm_worker.UNKNOWN):
                wrong[name] = f"{error.message}\n{error.tail}"
        shutil.rmtree(place)
    warm.close()
    assert not wrong, "\n\n".join(f"{name}: {said}" for name, said in wrong.items())
    if tag == "b11434":
        literal = {row(said) for said, _ in LITERAL.values()}
        assert {row.pattern for row in table("convert", "scripts")} <= seen | literal, "a row that nothing tries"


# What of the above a script tells of small files alone, and what it cannot.
EARLY = {"architecture", "no architecture", "config without layers", "no tokenizer", "tokenizer.model", "unknown bytes"}
EARLY |= {"too many tokens", "code", "option", "choice", "no value", "size", "mistral"}
LATE = {"heads", "fewer layers", "missing shard", "cut", "value head"}


@pytest.mark.slow
def test_without_weights_nothing_fails_that_does_not_with_them(
    tree: Callable[[str], Path], python: Path, data: Path, tmp_path: Path, shared_cache: Path
) -> None:
    env, certain = script_env(shared_cache / "home"), set[tuple[str, str]]()
    warm = warm_worker.Warm(str(python), tree("b11434"), env, tmp_path / "warm.log")
    run = warm.convert if warm_worker.can_fork("linux" if Path("/proc").is_dir() else "") else warm_worker.run_alone
    for tag, (package, _) in TAGS.items():
        for name in sorted(EARLY | LATE):
            spoil, words, _ = MODELS[name]
            model = Path(shutil.copytree(data / "tiny-llama", tmp_path / tag / name / "tiny-llama"))
            spoil(model)
            for file in (*model.glob("*.safetensors"), *model.glob("*.index.json")):
                file.unlink()
            whole = commands.model_command(str(python), tree(package), Path("x"), model / "x", "auto", "", tuple(words.split()))
            command = commands.vocabulary_command(msgspec.structs.replace(whole, env=env), model, model.parent / "out.gguf")
            try:
                run(command, model.parent / "log", lambda said: None)
                assert (model.parent / "out.gguf").read_bytes().startswith(b"GGUF")
            except CommandFailed as error:
                certain |= {(tag, name)} if is_certain(error.code, error.tail) else set()
    warm.close()
    assert certain == {(tag, name) for tag in TAGS for name in EARLY}


TRACE = "Traceback (most recent call last):\n"
TRACE += "".join(f'  File "convert_hf_to_gguf.py", line 1, in {name}\n    main()\n' for name in ("<module>", "main"))


def within(function: str, line: str, error: str) -> str:
    """The end of a script that failed in a function of one of upstream's modules."""
    return f'{TRACE}  File "conversion/x.py", line 1, in {function}\n    {line}\n{error}'


@pytest.mark.parametrize(
    ("code", "tail", "certain"),
    [
        (1, "ERROR:hf-to-gguf:Model Foo is not supported", True),
        (-9, "INFO:hf-to-gguf:Set model tokenizer", False),
        (1, f"{TRACE}KeyError: 'architectures'", True),
        (1, within("set_vocab", "f()", "ValueError: odd tokens"), True),
        (1, within("set_vocab", "open(path)", "FileNotFoundError: 'model.safetensors.index.json'"), False),
        (1, within("__init__", "max(name for name in self.model_tensors)", "ValueError: max() arg is an empty sequence"), False),
        (1, within("__init__", "raise", "ValueError: vision_config / audio_config not found in hparams"), True),
        (1, within("set_gguf_parameters", 'self.hparams["x"]', "KeyError: 'x'"), True),
        (1, within("set_gguf_parameters", "self.numbers['x']", "KeyError: 'x'"), False),
        (1, within("write_vocab", "raise", "ValueError: MmprojModel does not support vocab writing"), False),
    ],
)
def test_what_is_certain_without_weights(code: int, tail: str, certain: bool) -> None:
    assert is_certain(code, tail) is certain


@pytest.mark.parametrize("place", LITERAL)
def test_other_words_of_upstream_are_explained(place: str) -> None:
    said, cause = LITERAL[place]
    found, hint = explain(f"INFO:hf-to-gguf:Loading model\n{said}")
    assert cause in found and bool(hint) is bool(cause)


# The name of a tensor without a place → words of the cause, and of its own way out.
WRAPPED = {
    "_orig_mod.model.layers.0.mlp.up_proj.weight": ("torch.compile", "model._orig_mod"),
    "model._orig_mod.layers.0.mlp.up_proj.weight": ("torch.compile", "model._orig_mod"),
    "_fsdp_wrapped_module.model.norm.weight": ("FSDP or DeepSpeed", "zero_to_fp32.py"),
    "model.layers.0._flat_param": ("FSDP or DeepSpeed", "merge-weights"),
    "module.model.norm.weight": ("DataParallel", "model.module"),
    "optimizer.state.0.exp_avg": ("optimizer", "export the model"),
    "state.12.exp_avg_sq": ("optimizer", "export the model"),
    "model_ema.norm.weight": ("EMA", "average"),
    "ema.shadow_params.3": ("EMA", "average"),
    "actor.model.norm.weight": ("several models", "the one model"),
    "model.layers.0.mlp.up_proj.weight.absmax": ("by bitsandbytes", "model.dequantize()"),
    "model.layers.0.mlp.up_proj.weight.nested_quant_map": ("by bitsandbytes", "model.dequantize()"),
    "model.layers.0.mlp.up_proj.qweight": ("GPTQ or AWQ", "made from"),
    "model.layers.0.mlp.up_proj.input_scale": ("compressed-tensors", "run_compressed=False"),
    "model.layers.0.mlp.up_proj.weight_scale": ("compressed-tensors", "run_compressed=False"),
    "model.layers.0.mlp.up_proj.weight_packed": ("compressed-tensors", "run_compressed=False"),
    "model.layers.0.mlp.up_proj.scales": ("MLX", "--dequantize"),
    "model.layers.0.mlp.up_proj.biases": ("MLX", "--dequantize"),
    "model.layers.0.mlp.up_proj.W_q": ("HQQ", "made from"),
    "base_model.model.model.norm.weight": ("PEFT's adapter", "merge_and_unload"),
    "model.layers.0.self_attn.q_proj.lora_A.default.weight": ("PEFT's adapter", "merge_and_unload"),
    "model.layers.0.mlp.parametrizations.weight.original0": ("parametrizations", "remove_parametrizations"),
    "v_head.summary.weight": ("more than a language model", "from_pretrained"),
    "decoder.layers.0.self_attention.linear_qkv.weight": ("Megatron", "layout of Transformers"),
    "model.layers.61.eh_proj.weight": ("(MTP)", "num_nextn_predict_layers"),
    "vision_tower.x": ("images or sound", "from_pretrained"),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_tensor_without_a_place_has_its_own_way_out(name: str) -> None:
    for said in (f"ValueError: Can not map tensor {name!r}", f"ValueError: Unexpected tensors: [{name!r}, 'x']"):
        cause, hint = explain(within("map_tensor_name", "raise", said))
        assert WRAPPED[name][0] in cause and f"({name})" in cause and WRAPPED[name][1] in hint


def test_every_way_to_save_a_model_is_tried() -> None:
    rows = table("convert", "tensors")
    assert {next(row for row in rows if re.search(row.pattern, name)) for name in WRAPPED} == set(rows)


@pytest.mark.parametrize(
    "error", ["AttributeError: 'Foo' object has no attribute 'bar'", "AssertionError", "NotImplementedError"]
)
@pytest.mark.parametrize("function", ["set_vocab", "modify_tensors", "set_gguf_parameters", "index_tensors", "odd"])
def test_a_bare_error_is_told_with_what_was_read_and_what_to_do(error: str, function: str) -> None:
    said = "INFO:hf-to-gguf:gguf: loading model part 'model-2.safetensors'\n"
    cause, hint = explain(said + within(function, "assert this == that", error))
    assert cause and hint and hint != warm_worker.UNKNOWN
    if "did not expect" in cause:
        assert f"{function} in conversion/x.py" in cause and "just before: gguf: loading model part" in cause
        assert ": " in error or "assert this == that" in cause


def test_a_long_list_is_cut_and_no_brace_of_the_log_is_taken_for_ours() -> None:
    found, _ = explain(f"ValueError: Missing tensors: [{', '.join(repr(f'model.{n}') for n in range(9999))}]")
    assert len(found) < LONGEST + 100
    assert "{x}" in explain("ValueError: Can not map tensor 'a.{x}'")[0]
    assert explain("Unable to map tensor")[0] == "this architecture has no place for a tensor"


# As llama-quantize of b11434 says it, or (without a model that large) as src/llama-quant.cpp and src/llama-model.cpp have it.
TOOL = {
    "llama_quantize: invalid ftype 'Q9_K'": ("the type (Q9_K)", "llama-quantize"),
    "usage: llama-quantize [--help] [--allow-requantize]": ("does not take these arguments: ", "quantize_args"),
    "load_imatrix: failed to load imatrix from 'x'": ("cannot read the importance matrix: ", "from a text"),
    "imatrix size 64 is different from tensor size 128 for x": ("belongs to another model: ", "of this model"),
    "Missing importance matrix for tensor blk.0.ffn_up.weight in a very low-bit quantization": (
        "(blk.0.ffn_up.weight)",
        "Q4_K_M",
    ),
    "llama_model_quantize: failed to quantize: this quantization requires an imatrix!": ("importance matrix: ", "Q4_K_M"),
    "llama_model_quantize: failed to quantize: requantizing from type q4_0 is disabled": ("already (q4_0)", "outtype"),
    "llama_model_quantize: failed to quantize: quantized data validation failed": ("NaN", "bf16"),
    "llama_model_quantize: failed to quantize: basic_ios::clear: iostream error": ("could not be written", "free some space"),
    "write: No space left on device": ("the disk is full: ", "free some space"),
    "gguf_init_from_reader: failed to read key-value pairs": ("no whole GGUF", "--force"),
    "gguf_init_from_reader: invalid magic characters: 'hell', expected 'GGUF'": ("no whole GGUF", "--force"),
    "unknown model architecture: 'foo'": ("do not know the architecture foo", "doctor"),
    "other": ("", "log"),
}


@pytest.mark.parametrize("said", TOOL)
def test_llama_quantize_is_explained(said: str) -> None:
    cause, hint = quantize.explain(f"main: build = 0\n{said}")
    assert TOOL[said][0] in cause and TOOL[said][1] in hint and (not cause or cause.endswith(": "))
