"""What is refused before weights are fetched, tables over real trees and real jobs; and all that must not be refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llamacpp_orchestrator.convert import capabilities
from llamacpp_orchestrator.convert import preflight
from llamacpp_orchestrator.convert.preflight import Subject
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.util.store import Store
from llamacpp_orchestrator.util.store import beside
from tests.support import makers
from tests.support.answer import Answer
from tests.support.stage.hub import Hub

Tree = Callable[[str], Path]
LLAMA = {"architectures": ["LlamaForCausalLM"], "vocab_size": 256}
GLM = {"architectures": ["FooForCausalLM"], "text_config": {"architectures": ["LlamaForCausalLM"]}}
NEW = "HYV4ForCausalLM"  # known to b11434, not to b9760


def reading_fp8(tree: Path, folder: Path) -> Path:
    """A tree between the eras: it undoes one method, and would not say that it knows no other."""
    made = Path(shutil.copytree(tree, folder / "between", dirs_exist_ok=True))
    with (made / "convert_hf_to_gguf.py").open("a", encoding="utf-8") as script:
        script.write('\nSCALES = (".weight_scale_inv",)\n')
    return made


@pytest.fixture
def subject(tree: Tree, tmp_path: Path) -> Callable[..., Subject]:
    """A model of small files only, before a tag."""

    def make(tag: str = "b11434", config: Any = LLAMA, files: dict[str, str] | None = None, **more: Any) -> Subject:
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        for name, text in (files or {}).items():
            (folder / name).write_text(text)
        return Subject(
            tree=tree(tag) if " " not in tag else reading_fp8(tree("0.3.1"), tmp_path),
            tag=tag,
            folder=folder,
            source="org/m",
            **more,
        )

    return make


def refused(subject: Subject) -> str:
    """Message and hint of the refusal; "" when there is none."""
    try:
        preflight.check_model(subject)
    except OrchestrateError as error:
        assert error.message.startswith("org/m") and error.hint and error.exit_code == 1
        return f"{error.message}\n{error.hint}"
    return ""


@pytest.mark.parametrize(
    ("tag", "config", "args", "words"),
    [
        ("b11434", LLAMA, (), ""),
        ("0.3.1", LLAMA, (), ""),
        ("b11434", {"architectures": ["LlamaForCausalML"]}, (), "nearest that it knows: LlamaForCausalLM"),
        ("b11434", {"architectures": ["XyzzyModel"]}, (), "does not know the architecture XyzzyModel"),
        ("0.3.1", {"architectures": ["Qwen3ForCausalLM"]}, (), "pin a newer tag; the nearest that it knows: Qwen"),
        ("0.3.16", {"architectures": [NEW]}, (), "0.3.16 does not know"),
        ("b9760", {"architectures": [NEW]}, (), NEW),
        ("b11434", {"architectures": [NEW]}, (), ""),
        ("b11434", GLM, (), ""),
        ("b11434", {"architectures": ["FooModel"], "llm_config": {"architectures": ["Qwen2ForCausalLM"]}}, (), ""),
        ("b11434", {"architectures": ["FooModel"], "thinker_config": {"text_config": {"architectures": ["LlamaModel"]}}}, (), ""),
        ("b11434", {}, (), ""),
        ("b11434", {"architectures": None, "ssm_cfg": {}}, (), ""),
        ("b11434", {"architectures": []}, (), ""),
        ("b11434", {"vision_config": {"architectures": ["FooModel"]}}, (), ""),
        ("b11434", {"architectures": ["FooModel"], "a": {"b": {"c": {"architectures": ["LlamaForCausalLM"]}}}}, (), "FooModel"),
        ("b11434", {"architectures": "LlamaForCausalLM"}, (), ""),
        ("b11434", ["no object"], (), ""),
        ("b11434", {"architectures": ["InternVisionModel"]}, ("--mmp",), ""),
        ("b11434", {"architectures": ["FooModel"]}, ("--mistral-format",), ""),
        ("b11434", {"architectures": ["FooModel"]}, ("--mistral",), ""),
    ],
)
def test_architectures(tag: str, config: Any, args: tuple[str, ...], words: str, subject: Callable[..., Subject]) -> None:
    said = refused(subject(tag, config, args=args))
    assert words in said and bool(words) is bool(said)


def test_only_adapters_need_the_architecture_too(subject: Callable[..., Subject]) -> None:
    assert "FooModel" in refused(subject(config={"architectures": ["FooModel"]}, weights=False))
    assert refused(subject(config=LLAMA, weights=False)) == ""


def test_a_layout_of_its_own_is_left_to_upstream(subject: Callable[..., Subject]) -> None:
    assert refused(subject(config={"architectures": ["FooModel"]}, files={"lev_release.json": "{}"})) == ""


def test_a_registry_that_cannot_be_read_refuses_nothing(subject: Callable[..., Subject], tmp_path: Path) -> None:
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "convert_hf_to_gguf.py").write_text("print()")
    unknown = subject(config={"architectures": ["FooModel"]})
    assert refused(unknown)
    assert refused(msgspec.structs.replace(unknown, tree=tmp_path / "odd")) == ""


@pytest.fixture
def cached(tree: Tree, tmp_path: Path) -> Store:
    """A cache that holds two whole trees, and one that is still being made."""
    store = Store(tmp_path / "cache")

    def keep(tag: str, key: str) -> None:
        def lay(dest: Path) -> None:
            shutil.copytree(tree(tag), dest, dirs_exist_ok=True)

        store.ensure("source", key, lay, about=tag)

    for tag, key in (("b9760", "package-b9760"), ("b11434", "a" * 40), ("b11434", "package-b1")):
        keep(tag, key)
    beside(store.entry("source", "package-b1")).unlink()
    return store


def test_tags_in_the_cache_that_know_more_are_named(subject: Callable[..., Subject], cached: Store) -> None:
    older = {"tree": cached.entry("source", "package-b9760"), "store": cached}
    old = msgspec.structs.replace(subject("b9760", {"architectures": [NEW]}), **older)
    assert "set `llama_cpp.tag` to one that does: b11434 in the cache, or a newer one" in refused(old)
    # A mark that is copied is still that of another.
    shutil.copy(beside(cached.entry("source", "a" * 40)), beside(cached.entry("source", "package-b1")))
    beside(cached.entry("source", "a" * 40)).unlink()
    assert "in the cache" not in refused(old)
    unknown = msgspec.structs.replace(subject("b9760", {"architectures": ["XyzzyModel"]}), store=cached)
    assert "in the cache" not in refused(unknown)


def quantized(method: str | None, architecture: str = "LlamaForCausalLM", **more: Any) -> dict[str, Any]:
    said = {"quant_method": method, **more} if method else more
    return {"architectures": [architecture], "quantization_config": said}


CT = "compressed-tensors"
PACKED = json.dumps({"weight_map": {"model.layers.0.mlp.down_proj.weight.absmax": "model-00001-of-00002.safetensors"}})


@pytest.mark.parametrize(
    ("tag", "config", "index", "words"),
    [
        ("b11434", quantized("bitsandbytes", load_in_4bit=True), "", "quantized already (bitsandbytes), which b11434 cannot"),
        ("b9760", quantized("awq"), "", "(awq)"),
        ("b11434", quantized("mxfp4"), "", "(mxfp4)"),
        ("b11434", quantized("mxfp4", "GptOssForCausalLM"), "", ""),
        ("b11434", quantized("fp8"), "", ""),
        ("b11434", quantized("gptq", bits=4), "", ""),
        ("b11434", quantized("modelopt", quant_algo="NVFP4"), "", ""),
        ("b11434", quantized("strange", quant_algo="NVFP4"), "", ""),
        ("b11434", quantized(CT, format="pack-quantized"), "", ""),
        ("b11434", quantized(CT, format="marlin-24"), "", f"({CT}, format marlin-24)"),
        ("b11434", quantized(CT), "", ""),
        ("b11434", quantized(None, load_in_4bit=True), "", ""),
        ("b11434", {**LLAMA, "quantization_config": "odd"}, "", ""),
        ("b11434", LLAMA, PACKED, "(bitsandbytes)"),
        ("0.3.1", quantized("bitsandbytes"), "", ""),
        ("0.3.1", quantized("bitsandbytes"), PACKED, "(bitsandbytes), which 0.3.1 cannot"),
        ("0.3.1", LLAMA, PACKED, "(bitsandbytes)"),
        ("0.3.1", LLAMA, '{"weight_map": {"model.norm.weight": "model.safetensors"}}', ""),
        ("0.3.1", LLAMA, "[]", ""),
        ("b10000 or so", quantized("fp8"), PACKED.replace(".absmax", "_scale_inv"), ""),
    ],
)
def test_quantized_weights(tag: str, config: Any, index: str, words: str, subject: Callable[..., Subject]) -> None:
    said = refused(subject(tag, config, {"model.safetensors.index.json": index} if index else {}))
    assert words in said and bool(words) is bool(said)


def test_packed_weights_are_seen_in_their_headers(subject: Callable[..., Subject], data: Path) -> None:
    asked = subject("0.3.1", LLAMA)
    (asked.folder / "a.safetensors").write_bytes(b"damaged, which is told elsewhere")
    shutil.copy(data / "tiny-llama" / "model.safetensors", asked.folder)
    assert refused(asked) == ""
    makers.tensors(
        asked.folder / "model.safetensors", lambda found: found | {"model.layers.0.mlp.up_proj.qweight": makers.zeros(4)}
    )
    assert "(gptq or awq), which 0.3.1 cannot read" in refused(asked)


def test_quantized_bases_of_adapters_are_refused_as_upstream_does(subject: Callable[..., Subject]) -> None:
    assert "(awq)" in refused(subject("b11434", quantized("awq"), weights=False))
    assert refused(subject("0.3.1", quantized("awq"), {"model.safetensors.index.json": PACKED}, weights=False)) == ""
    assert refused(subject("b11434", quantized("awq"), args=("--vocab-only",))) == ""


@pytest.mark.parametrize(
    ("readme", "config", "base"),
    [
        ("---\nlicense: mit\nbase_model: meta-llama/Llama-3.2-1B\n---\n", {}, "meta-llama/Llama-3.2-1B"),
        ('---\nbase_model: "a/b"\n---\n', {"_name_or_path": "c/d"}, "a/b"),
        ("---\nbase_model:\n- a/b\n- c/d\ntags: []\n---\n", {}, "a/b"),
        ("---\nbase_model: [a/b]\n---\n", {}, "a/b"),
        ("---\r\nbase_model: a/b\r\n---\r\n", {}, "a/b"),
        ("---\nbase_model:\nlicense: mit\n---\n", {}, ""),
        ("base_model: a/b\n", {"_name_or_path": "c/d"}, "c/d"),
        ("", {"_name_or_path": "/root/models/x"}, ""),
        ("", {}, ""),
    ],
)
def test_the_unquantized_model_is_named_where_it_is_declared(
    readme: str, config: dict[str, Any], base: str, subject: Callable[..., Subject]
) -> None:
    asked = subject(config=quantized("awq") | config)
    (asked.folder / "README.md").write_bytes(readme.encode())
    said = refused(asked)
    assert (f"name the unquantized model: {base};" if base else "name the model that it was made from;") in said


@pytest.mark.parametrize(("size", "rows", "refuses"), [(300, 320, False), (300, 300, False), (300, 257, True), (None, 1, False)])
def test_a_vocabulary_larger_than_the_embedding(
    size: int | None, rows: int, refuses: bool, subject: Callable[..., Subject], data: Path
) -> None:
    asked = subject(config={**LLAMA, "vocab_size": size})
    makers.write(asked.folder / "model.safetensors", {preflight.EMBEDDING: makers.zeros(rows, 64)})
    assert bool(refused(asked)) is refuses
    assert not refuses or "its embedding has 257 rows, its config a vocabulary of 300" in refused(asked)
    assert refused(msgspec.structs.replace(asked, weights=False)) == ""


def failed(folder: Path, said: str, code: int = 1) -> CommandFailed:
    """A script's failure with its log."""
    (folder / "log").write_text(said)
    return CommandFailed("it failed", code=code, hint="pin a newer tag; or else", log=folder / "log")


EYE = {"architectures": ["InternVisionModel"]}
UNKNOWN = "BPE pre-tokenizer was not recognized!\n** chkhsh:  "
KNOWN_BY_NEWER = 'chkhsh == "([0-9a-f]{64})"'


@pytest.mark.parametrize(
    ("config", "more", "said", "code", "words"),
    [
        (LLAMA, {}, "usage", 2, "job.yaml: m: it failed"),
        (EYE, {}, "Model InternVisionModel is not supported", 1, "it may make only its projector (`args: [--mmproj]`)"),
        (EYE, {"args": ("--mmproj",)}, "Model InternVisionModel is not supported", 2, "has no vision or audio part"),
        (LLAMA, {"mmproj": True}, "Model LlamaForCausalLM is not supported", 2, "m has no vision or audio part: its config.json"),
        (
            {**LLAMA, "vision_config": {"x": 1}},
            {"mmproj": True},
            "Model LlamaForCausalLM is not supported",
            2,
            "m: b11434 has no projector for LlamaForCausalLM",
        ),
        (LLAMA, {}, "Model FooModel is not supported", 1, "it failed\npin a newer tag; or else"),
        (LLAMA, {}, UNKNOWN + "0" * 64, 1, "it failed\npin a newer tag; or else"),
        (LLAMA, {}, "something else", 1, "it failed\npin a newer tag; or else"),
    ],
)
def test_a_failed_script_is_told_in_terms_of_the_job(
    config: Any, more: dict[str, Any], said: str, code: int, words: str, subject: Callable[..., Subject], tmp_path: Path
) -> None:
    error = preflight.refusal(subject(config=config, **more), "job.yaml: m", failed(tmp_path, said, 2 if said == "usage" else 1))
    assert words in f"{error.message}\n{error.hint}" and error.exit_code == code and error.log == tmp_path / "log"


def test_tags_in_the_cache_that_know_a_tokenizer_are_named(
    subject: Callable[..., Subject], cached: Store, tmp_path: Path
) -> None:
    older, newer = cached.entry("source", "package-b9760"), cached.entry("source", "a" * 40)
    digests = [set(re.findall(KNOWN_BY_NEWER, capabilities.core(root).read_text(encoding="utf-8"))) for root in (newer, older)]
    unknown = failed(tmp_path, UNKNOWN + min(digests[0] - digests[1]))
    error = preflight.refusal(msgspec.structs.replace(subject("b9760"), tree=older, store=cached), "job.yaml: m", unknown)
    assert error.hint == "set `llama_cpp.tag` to one that does: b11434 in the cache, or a newer one; or else"


@pytest.mark.parametrize(
    ("model", "lora", "words"),
    [
        ({"args": ["--split-max-sice", "4G"]}, {}, "job.yaml: tiny-llama: convert_hf_to_gguf.py of b11434 has no option"),
        ({}, {"args": ["--use-temp-file"]}, "job.yaml: lora-a: convert_lora_to_gguf.py of b11434 has no option"),
        ({}, {"outtype": "tq1_0"}, "lora-a: b11434 has no outtype `tq1_0` for adapters"),
        ({"outtype": "q4_k_m"}, {}, "types such as Q4_K_M belong under `quantize`"),
    ],
)
def test_types_and_options_that_the_tag_lacks(
    model: dict[str, Any],
    lora: dict[str, Any],
    words: str,
    orchestrate: Callable[..., Answer],
    job: Callable[..., Path],
    data: Path,
    world: Path,
) -> None:
    adapter = {"source": str(data / "lora-a"), **lora}
    answer = orchestrate("run", job({"source": str(data / "tiny-llama"), "outtype": "f16", "loras": [adapter], **model}))
    assert answer.code == 2 and words in answer.err and "hint:" in answer.err
    assert not list(world.glob("dist/*"))


def test_an_option_that_the_script_does_not_take_so(
    orchestrate: Callable[..., Answer], job: Callable[..., Path], data: Path, world: Path
) -> None:
    # Only the script itself knows; an adapter of another script might be done by then.
    answer = orchestrate("run", job({"source": str(data / "tiny-llama"), "outtype": "f16", "args": ["--split-max-size"]}))
    words = "job.yaml: tiny-llama: this tag's script does not take an option so: --split"
    assert answer.code == 2 and words in answer.err and "hint:" in answer.err
    assert not list(world.glob("dist/*"))


def test_nothing_heavy_is_downloaded_for_what_cannot_be_converted(
    hub: Hub, orchestrate: Callable[..., Answer], job: Callable[..., Path], world: Path
) -> None:
    config = json.loads(hub.files["config.json"])
    hub.files["config.json"] = json.dumps(config | quantized("awq")).encode()
    hub.files["README.md"] = b"---\nbase_model: org/plain\n---\n"
    file = job({"source": "org/m", "name": "m", "outtype": "f16"})
    answer = orchestrate("run", file)
    assert answer.code == 1 and "failed  inspect m" in answer.err and "name the unquantized model: org/plain" in answer.err
    assert not [path for path in hub.seen if path.startswith("GET") and path.endswith(".safetensors")]


@pytest.mark.slow
def test_a_view_of_before_is_looked_at_again_for_another_tag(
    orchestrate: Callable[..., Answer], job: Callable[..., Path], copy: Callable[..., Path], world: Path
) -> None:
    model = copy("tiny-llama")
    makers.edit(model / "config.json", architectures=["HYV4ForCausalLM"])
    file = job({"source": "./model", "outtype": "f16"})
    first = orchestrate("run", file)
    assert first.code == 1 and "does not know" not in first.err
    text = file.read_text().replace("b11434", "b9760")
    file.write_text(text)
    again = orchestrate("run", file)
    assert again.code == 1 and f"./model: b9760 does not know the architecture {NEW}" in again.err
    assert "set `llama_cpp.tag` to one that does: " in again.err and "b11434" in again.err.partition("to one that does: ")[2]
