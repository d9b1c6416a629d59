"""The numbers of config.json against those of an output: none is lost in silence, none called lost that is only elsewhere."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llamacpp_orchestrator.convert import capabilities
from llamacpp_orchestrator.convert import positions
from llamacpp_orchestrator.convert.capabilities import Decisions
from llamacpp_orchestrator.verify import gguf
from llamacpp_orchestrator.verify import hyperparameters
from llamacpp_orchestrator.verify import levels
from llamacpp_orchestrator.verify.gguf import Contents
from tests.support import ROOT
from tests.support import makers
from tests.support import workers

Tree = Callable[[str], Path]
TAGS = ("b9760", "b11434")
MAKER = ROOT / "tests" / "support" / "architectures.py"
LLAMA = {
    "general.architecture": "llama", "llama.block_count": 2, "llama.embedding_length": 64, "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2, "llama.attention.layer_norm_rms_epsilon": 1e-05, "llama.rope.freq_base": 500000.0,
    "llama.context_length": 256,
}  # fmt: skip
SAID = {
    "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "max_position_embeddings": 256,
}  # fmt: skip
FIVE = {key: value for key, value in SAID.items() if key != "rope_theta"}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
# What of an architecture may be anything, for nothing in its config says it, or nothing of the runtime depends on it.
FREE = {
    "context_length", "feed_forward_length", "tensor_data_layout", "vocab_size", "classifier.pooling_type", "hidden_activation",
    "rope.scaling.type", "rope.scaling.finetuned", "rope.scaling.attn_factor", "ssm.inner_size", "ssm.time_step_rank",
    "expert_gating_func", "nextn_predict_layers", "expert_feed_forward_length",
}  # fmt: skip
FREE_OF = {
    "bloom": {"attention.head_count_kv"},
    "olmo": {"attention.layer_norm_epsilon"},
    "phi2": {"attention.head_count_kv"},
    "phi3": {"attention.sliding_window"},
}


@pytest.fixture
def made(python: Path, tree: Tree, shared_cache: Path, shared: Path, compiled: dict[str, str]) -> Path:
    """Tiny models of many architectures and what two tags made of them: once for the session, in one process."""
    folder = shared_cache / "architectures"
    draft = folder.with_name("architectures.draft")

    def make() -> None:
        shutil.rmtree(draft, ignore_errors=True)
        argv = [str(python), str(MAKER), str(draft), *(str(tree(tag)) for tag in TAGS)]
        env = {"PATH": "", "HF_HUB_OFFLINE": "1", "HOME": str(shared_cache), **compiled}
        done = subprocess.run(argv, env=env, capture_output=True, text=True, encoding="utf-8", check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        draft.rename(folder)

    if not folder.exists():
        workers.once(shared / "architectures" / "made", {"made": folder}, make)
    return folder


def comparing(have: Contents, tree: Path, config: dict[str, Any]) -> Callable[[dict[str, Any], dict[str, Any]], tuple[str, ...]]:
    """Answers with the failures of an output, given a config and its metadata."""
    factors = {name: hyperparameters._floats(*have.tensors[name]) for name in positions.TENSORS if name in have.tensors}
    way = capabilities.decisions(tree, config["architectures"][0])
    return lambda said, metadata: hyperparameters.compare(said, hyperparameters.of(metadata, factors), way).failures


def as_five(config: dict[str, Any]) -> dict[str, Any]:
    """A config of transformers 4 in the spelling of 5, as 5.23 saves it."""
    rest = {key: value for key, value in config.items() if key not in ("rope_theta", "rope_scaling", "rope_local_base_freq")}
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    whole = {**scaling, "rope_type": kind, "rope_theta": config.get("rope_theta")}
    if "rope_local_base_freq" in config:
        local = {"rope_type": "default", "rope_theta": config["rope_local_base_freq"]}
        return rest | {"rope_parameters": {"full_attention": whole, "sliding_attention": local}}
    return rest | ({"rope_parameters": whole} if "rope_theta" in config else {})


@pytest.mark.slow
@pytest.mark.parametrize("tag", TAGS)
def test_no_architecture_is_blamed_for_what_upstream_does(tag: str, made: Path, tree: Tree) -> None:
    outputs = sorted((made / tag).glob("*.gguf"))
    names = set()
    for path in outputs:
        have = gguf.contents([path])
        names.add(have.metadata["general.architecture"])
        found = hyperparameters.check(made / "models" / path.stem, have, tree(tag))
        assert found.failures == (), (path.stem, found.failures)
        assert bool(found.notes) == (path.stem == "mistral"), (path.stem, found.notes)
        config = json.loads((made / "models" / path.stem / "config.json").read_text())
        assert comparing(have, tree(tag), config)(as_five(config), have.metadata) == (), path.stem
    assert len(names) >= 40, "and many are tried"


@pytest.mark.no_cover
def test_each_number_that_differs_is_a_failure_in_each_architecture(made: Path, tree: Tree) -> None:
    """Every key of every output in turn: twice what it was and one more, or the other of two words."""
    root, missed, wrong = tree(TAGS[1]), [], 0
    for path in sorted((made / TAGS[1]).glob("*.gguf")):
        have = gguf.contents([path])
        name = have.metadata["general.architecture"]
        config = json.loads((made / "models" / path.stem / "config.json").read_text())
        failures = comparing(have, root, config)
        for key, value in have.metadata.items():
            plain = key.removeprefix(f"{name}.")
            if plain != key and plain not in FREE | FREE_OF.get(name, set()):
                changed = have.metadata | {key: other(value)}
                wrong += 1
                if not all(failures(each, changed) for each in (config, as_five(config))):
                    missed.append((path.stem, key))
    assert missed == [] and wrong > 350, wrong


def other(value: Any) -> Any:
    """Another value of a kind."""
    if isinstance(value, list):
        return [other(each) for each in value]
    return not value if isinstance(value, bool) else 2 * value + 1 if isinstance(value, (int, float)) else f"no {value}"


def alone(config: dict[str, Any], **changes: Any) -> tuple[str, ...]:
    """What is said of a Llama whose metadata has these keys otherwise, "_" for "."; None takes one out."""
    names = {f"llama.{name.replace('__', '.')}": value for name, value in changes.items() if name != "factors"}
    metadata = {key: value for key, value in (LLAMA | names).items() if value is not None}
    model = hyperparameters.of(metadata, changes.get("factors", {}))
    found = hyperparameters.compare(config, model, Decisions())
    return found.failures + found.notes


@pytest.mark.parametrize(
    ("config", "changes", "said"),
    [
        (SAID, {}, ""),
        (SAID, {"rope__freq_base": None}, "it has no rope.freq_base, for which the runtime takes 10000.0, where"),
        (FIVE | {"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}}, {}, ""),
        (FIVE | {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, {}, "its rope.freq_base is 500000.0, where"),
        (FIVE, {}, ""),
        (SAID | {"rope_scaling": {"type": "linear", "factor": 2.0}}, {}, "it has no rope.scaling.factor"),
        (SAID | {"rope_scaling": {"type": "linear", "factor": 2.0}}, {"rope__scaling__factor": 2.0}, ""),
        (SAID | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, {}, "it has no rope.scaling.type"),
        (SAID | {"rope_scaling": {"rope_type": "foo", "factor": 4.0}}, {}, "config.json scales rope in the way 'foo'"),
        (SAID | {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, {}, "with the length of the text"),
        (SAID | {"rope_scaling": {"rope_type": "llama3", **LLAMA3}}, {}, "it has no rope_freqs.weight"),
        (SAID, {"rope__scaling__type": "yarn"}, "its rope is scaled"),
        (SAID | {"rms_norm_eps": 1e-6}, {}, "its attention.layer_norm_rms_epsilon is 1e-05, where config.json says 1e-06"),
        (SAID, {"attention__layer_norm_rms_epsilon": None}, "it has no epsilon"),
        (SAID | {"num_key_value_heads": None}, {}, ""),
        (SAID, {"attention__head_count_kv": None}, "it has no attention.head_count_kv, for which the runtime takes 4"),
        (SAID, {"attention__head_count_kv": [2, 2]}, ""),
        (SAID, {"attention__head_count_kv": [0, 2]}, ""),
        (SAID, {"attention__head_count_kv": [2, 1]}, "its attention.head_count_kv is [2, 1]"),
        (SAID | {"head_dim": 32}, {}, "it has no attention.key_length, for which the runtime takes 16"),
        (SAID | {"num_local_experts": 4, "num_experts_per_tok": 2}, {"expert_count": 4}, "it has no expert_used_count"),
        (SAID | {"num_experts": 4}, {"expert_count": 4}, ""),
        (SAID | {"attention_multiplier": 0.25}, {}, ""),
        (SAID | {"attention_multiplier": 0.5}, {}, "it has no attention.scale, for which the runtime takes 0.25"),
        (SAID | {"logit_scale": 0.5}, {}, "it has no logit_scale, for which the runtime takes 1"),
        (SAID | {"hidden_act": "relu"}, {}, "config.json says hidden_act relu, where llama of llama.cpp has silu"),
        (SAID | {"hidden_act": "silu"}, {}, ""),
        (SAID | {"hidden_act": "something"}, {}, "config.json says that the activation is something, which nothing here knows"),
        (SAID | {"is_causal": False}, {}, "its tokens see only what is before them"),
        (SAID | {"is_causal": False}, {"attention__causal": False}, ""),
        (SAID | {"sliding_window": 64}, {}, "config.json lets tokens see 64 others"),
        (SAID | {"sliding_window": 64, "use_sliding_window": False}, {}, ""),
        (SAID | {"sliding_window": 256}, {}, ""),
        (SAID | {"brand_new": 7, "other": None, "third": 1.0}, {}, "config.json says brand_new, which upstream does not read"),
        (SAID | {"torch_dtype": "bfloat16", "attention_dropout": 0.1, "eos_token_id": [1, 2], "image_token_id": 3}, {}, ""),
        ({"architectures": SAID["architectures"], "text_config": SAID}, {}, ""),
        ({"text_config": SAID | {"rope_theta": 1e4}}, {}, "its rope.freq_base is 500000.0"),
    ],
)  # fmt: skip
def test_what_a_config_says_is_there_or_what_the_runtime_does(config: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    found = alone(config, **changes)
    assert bool(found) == bool(said) and all(said in each for each in found[:1]), found
    assert len(found) <= 1 + ("key_length" in said), "and said once; a head's size is that of keys and of values"


def test_the_factors_of_llama3_are_those_of_the_config() -> None:
    config = FIVE | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, **LLAMA3}}
    right = (1.0, 2.4422593, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0)  # what b11434 wrote for these numbers
    name = "rope_freqs.weight"
    assert alone(config, factors={name: right}) == ()
    for wrong in ((1.0, 1.0, *right[2:]), right[:4], ()):
        assert alone(config, factors={name: wrong}) == (f"the numbers of {name} are not those of config.json (llama3)",)


def test_layers_with_a_window_are_those_of_the_config() -> None:
    head = {"general.architecture": "gemma3", "gemma3.block_count": 6, "gemma3.attention.sliding_window": 64}
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    config = {"num_hidden_layers": 6, "sliding_window": 64, "layer_types": kinds}

    def said(**keys: Any) -> tuple[str, ...]:
        model = hyperparameters.of(head | {f"gemma3.{key.replace('__', '.')}": value for key, value in keys.items()}, {})
        return hyperparameters.compare(config, model, Decisions()).failures

    assert said() == () and said(attention__sliding_window_pattern=[True] * 5 + [False]) == ()
    (told,) = said(attention__sliding_window=128)
    assert told == "its attention.sliding_window is 128, where config.json says 64 (sliding_window)"
    config["layer_types"] = kinds[::-1]
    assert said() == ("layer 0 sees a window, where config.json says otherwise (layer_types)",)
    assert said(attention__sliding_window_pattern=[False] + [True] * 5) == ()
    del config["layer_types"]
    config["sliding_window_pattern"] = 3
    assert said() and said(attention__sliding_window_pattern=3) == ()
    assert positions.periodic(3, True, 4) == [False, True, True, False] and positions.periodic(0, False, 2) == [True, True]


def test_a_difference_that_may_be_upstreams_own_way_is_a_note() -> None:
    model = hyperparameters.of({"general.architecture": "strange", "strange.attention.head_count": 1}, {})
    config = {"num_attention_heads": 4}
    assert hyperparameters.compare(config, model, Decisions()).failures
    for way in (Decisions(written=frozenset({"head_count"})), Decisions(own=frozenset({"num_attention_heads"}))):
        found = hyperparameters.compare(config, model, way)
        assert not found.failures and "attention.head_count is 1" in found.notes[0]


@pytest.mark.parametrize(
    ("tied", "head", "kept", "said"),
    [
        (True, "same", True, ""), (True, "other", True, "note: config.json says that head and embedding are one"),
        (True, "other", False, "note: the head in the weights is another"), (True, "none", False, ""),
        (False, "other", True, ""), (False, "other", False, "it has no head of its own"), (False, "same", False, ""),
        (False, "short", False, "it has no head of its own"), (None, "other", True, ""),
    ],
)  # fmt: skip
def test_the_head_is_the_sources(tied: bool | None, head: str, kept: bool, said: str, tmp_path: Path) -> None:
    embedding = makers.zeros(4, 8)
    heads = {"same": embedding, "other": ("F32", [4, 8], struct.pack("<32f", *range(32))), "short": makers.zeros(2, 8)}
    weights = {"model.embed_tokens.weight": embedding} | ({"lm_head.weight": heads[head]} if head in heads else {})
    makers.write(tmp_path / "model.safetensors", weights)
    (tmp_path / "config.json").write_text(json.dumps(SAID | ({} if tied is None else {"tie_word_embeddings": tied})))
    tensors = {"output.weight": (tmp_path, gguf.Tensor("output.weight", 0, 0, 0))} if kept else {}
    found = hyperparameters.check(tmp_path, Contents(metadata=LLAMA, tensors=tensors), tmp_path)
    told = [*found.failures, *(f"note: {note}" for note in found.notes)]
    assert (len(told) == 1 and told[0].startswith(said)) if said else told == []


def test_a_source_without_a_config_is_told(tmp_path: Path) -> None:
    found = hyperparameters.check(tmp_path, Contents(metadata=LLAMA, tensors={}), tmp_path)
    assert found.notes == ("its source has no config.json, so its numbers were not compared",)


def test_mistrals_own_layout_is_not_held_to_the_other(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SAID | {"rope_theta": 1.0}))
    asked = levels.Subject(kind="model", files=(), views=(tmp_path,), tree=tmp_path)
    have = Contents(metadata=LLAMA, tensors={})
    assert levels._numbers(asked, have).failures
    found = levels._numbers(msgspec.structs.replace(asked, args=("--mistral-format",)), have)
    assert not found.failures and "params.json" in found.notes[0]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "llama.rope.freq_base is not as in the file that it was made from"),
        (("--override-kv", "llama.rope.freq_base=float:1"), ""),
        (("--override-kv=llama.rope.freq_base=float:1",), ""),
        (("--override-kv", "llama.block_count=int:2"), "llama.rope.freq_base"),
    ],
)
def test_quantizing_leaves_the_numbers_as_they_are(args: tuple[str, ...], said: str) -> None:
    before, after = (Contents(metadata=LLAMA | {"llama.rope.freq_base": base}, tensors={}) for base in (500000.0, 1.0))
    assert levels._quantized(before, before, args).failures == ()
    assert "".join(levels._quantized(before, after, args).failures).startswith(said)
