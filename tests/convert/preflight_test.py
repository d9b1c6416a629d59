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
from llamacpp_orchestrator.convert import commands
from llamacpp_orchestrator.convert import preflight
from llamacpp_orchestrator.convert import warm_worker
from llamacpp_orchestrator.convert.preflight import Subject
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.pipeline import preflight as pipeline_preflight
from llamacpp_orchestrator.source.tree import TAG_MARK
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.command import script_env
from llamacpp_orchestrator.system.interpreter import Interpreter
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
        ("b11434", {"architectures": ["InternVisionModel"]}, (), "args: [--mmproj]"),
        ("b11434", {"architectures": ["InternVisionModel"]}, ("--mmproj",), ""),
        ("b11434", {"architectures": ["InternVisionModel"]}, ("--mmp",), ""),
        ("b11434", LLAMA, ("--mmproj",), "the projector of the architecture LlamaForCausalLM"),
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
def cached(tree: Tree, tmp_path: Path) -> Path:
    """A cache that holds two whole trees, and one that is still being made."""
    for name, tag, whole in (("package-b9760", "b9760", True), ("a" * 40, "b11434", True), ("package-b1", "b11434", False)):
        place = shutil.copytree(tree(tag), tmp_path / "source" / name)
        if whole:
            (place / "complete.json").write_text("{}")
    return tmp_path / "source"


def test_tags_in_the_cache_that_know_more_are_named(subject: Callable[..., Subject], cached: Path) -> None:
    old = msgspec.structs.replace(subject("b9760", {"architectures": [NEW]}), tree=cached / "package-b9760", trees=cached)
    assert f"set `llama_cpp.tag` to one that does: {'a' * 40} in the cache, or a newer one" in refused(old)
    (cached / ("a" * 40) / TAG_MARK).write_text("b11434")
    assert "set `llama_cpp.tag` to one that does: b11434 in the cache, or a newer one" in refused(old)
    shutil.copytree(cached / ("a" * 40), cached / "package-b9999")
    (cached / "package-b9999" / TAG_MARK).unlink()
    assert "one that does: b9999, b11434 in the cache" in refused(old)
    unknown = msgspec.structs.replace(subject("b9760", {"architectures": ["XyzzyModel"]}), trees=cached)
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


@pytest.mark.parametrize(
    ("size", "added", "rows", "words"),
    [
        (256, (), 256, ""),
        (300, (256, 257), 300, ""),
        (300, (256,), 320, ""),
        (256, (256,), None, "its tokenizer has 257 tokens, its config a vocabulary of 256"),
        (300, (400,), 300, "401 tokens"),
        (300, (256,), 257, "its embedding has 257 rows, its config a vocabulary of 300"),
        (None, (400,), None, ""),
    ],
)
def test_vocabularies(
    size: int | None, added: tuple[int, ...], rows: int | None, words: str, subject: Callable[..., Subject], data: Path
) -> None:
    asked = subject(config={**LLAMA, "vocab_size": size})
    makers.byte_tokenizer(asked.folder, *added)
    if rows:
        shutil.copy(data / "tiny-llama" / "model.safetensors", asked.folder)
        makers.tensors(asked.folder / "model.safetensors", lambda found: {preflight.EMBEDDING: makers.zeros(rows, 64)})
    said = refused(asked)
    assert words in said and bool(words) is bool(said)
    assert refused(msgspec.structs.replace(asked, weights=False)) == ""


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda folder: (folder / "tokenizer.model").touch(), "sentencepiece ignores what is too many"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "there is none"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "it is damaged, which upstream says"),
        (lambda folder: makers.edit(folder / "tokenizer.json", model={"type": "Unigram"}), "another kind"),
        (lambda folder: makers.edit(folder / "tokenizer.json", model={"type": "BPE", "byte_fallback": True}), "Llama 2's kind"),
        (lambda folder: makers.edit(folder / "config.json", architectures=["MPTForCausalLM"]), "it tries several ways"),
        (lambda folder: makers.edit(folder / "config.json", text_config={"architectures": ["Qwen2Model"]}), "which of the two?"),
        (lambda folder: makers.edit(folder / "tokenizer_config.json", tokenizer_class="HybridDNATokenizer"), "an exception"),
        (lambda folder: makers.edit(folder / "tokenizer.json", model={"type": "BPE", "vocab": []}, added_tokens=None), "odd"),
    ],
)
def test_where_the_vocabulary_is_another_matter_nothing_is_refused(
    spoil: Callable[[Path], None], why: str, subject: Callable[..., Subject]
) -> None:
    asked = subject()
    makers.byte_tokenizer(asked.folder, 999)
    assert "1000 tokens" in refused(asked) and preflight.is_hashed(asked)
    spoil(asked.folder)
    assert refused(asked) == "", why


def test_the_digest_is_that_of_upstream_and_known_or_not(
    subject: Callable[..., Subject], python: Path, cached: Path, data: Path, tmp_path: Path, shared_cache: Path
) -> None:
    env = script_env(shared_cache / "home")
    asked = msgspec.structs.replace(subject(), tree=cached / "package-b9760", tag="b9760", trees=cached)
    makers.byte_tokenizer(asked.folder)
    interpreter = Interpreter(python=str(python), run=process.stream, env=env, scratch=tmp_path, log=tmp_path / "ours.log")
    digest = pipeline_preflight.hash_of(asked, interpreter)
    assert re.fullmatch("[0-9a-f]{64}", digest)

    # Upstream prints the same when it gives up.
    model = Path(shutil.copytree(data / "tiny-llama", tmp_path / "whole"))
    makers.byte_tokenizer(model)
    command = commands.model_command(str(python), asked.tree, model, tmp_path / "x.gguf", "f16", "x", ())
    log = tmp_path / "upstream.log"
    with pytest.raises(OrchestrateError, match="does not know the model's tokenizer"):
        warm_worker.run_alone(msgspec.structs.replace(command, env=env), log, lambda said: None)
    assert f"chkhsh:  {digest}" in log.read_text() and f"chkhsh: {digest}" in interpreter.log.read_text()

    with pytest.raises(OrchestrateError, match="b9760 does not know the model's tokenizer") as error:
        preflight.check_hash(asked, digest)
    assert error.value.hint.startswith("pin a newer tag") and "original's tokenizer files" in error.value.hint
    other = cached / ("a" * 40) / "conversion" / "base.py"
    known = min(capabilities.hashes(other.parents[1]))
    other.write_text(other.read_text(encoding="utf-8").replace(known, digest), encoding="utf-8")
    with pytest.raises(OrchestrateError) as error:
        preflight.check_hash(asked, digest)
    assert f"{'a' * 40} in the cache" in error.value.hint
    preflight.check_hash(msgspec.structs.replace(asked, tree=other.parents[1]), digest)
    preflight.check_hash(asked, "")
    (asked.folder / "tokenizer.json").write_text("{}")
    assert pipeline_preflight.hash_of(asked, interpreter) == "" and not list(tmp_path.glob("a*.json"))


@pytest.mark.parametrize("args", [(), ("--mmproj",), ("--target-model-dir", "x")])
def test_the_digest_is_asked_for_where_the_script_does(args: tuple[str, ...], subject: Callable[..., Subject]) -> None:
    asked = subject(args=args)
    assert not preflight.is_hashed(asked)
    makers.byte_tokenizer(asked.folder)
    assert preflight.is_hashed(asked) is not bool(args)


def test_an_unknown_tokenizer_is_told_before_the_conversion(
    orchestrate: Callable[..., Answer], job: Callable[..., Path], copy: Callable[..., Path], world: Path, shared_cache: Path
) -> None:
    makers.byte_tokenizer(copy("tiny-llama"))
    answer = orchestrate("run", job({"source": "./model", "outtype": ["f16", "bf16"]}), "--keep-going")
    assert answer.code == 1 and answer.err.count("./model: b11434 does not know the model's tokenizer") >= 2
    assert "Traceback" not in answer.err and not list(world.glob("dist/*"))
    logs = {
        path.name
        for path in (shared_cache / "logs").glob("job-*/*")
        if path.stat().st_mtime > (world / "job.yaml").stat().st_mtime
    }
    assert "tokenizer-model-f16.gguf.log" in logs and "convert-model-f16.gguf.log" not in logs


def test_a_tokenizer_that_does_not_load_is_left_to_upstream(
    orchestrate: Callable[..., Answer], job: Callable[..., Path], copy: Callable[..., Path]
) -> None:
    model = copy("tiny-llama")
    makers.byte_tokenizer(model)
    makers.edit(model / "tokenizer.json", pre_tokenizer={"type": "NoSuchKind"})
    answer = orchestrate("run", job({"source": "./model", "outtype": "f16"}))
    assert answer.code == 1 and "convert_hf_to_gguf.py" in answer.err and "failed  convert" in answer.err


@pytest.mark.parametrize(
    ("model", "lora", "words"),
    [
        ({"args": ["--split-max-sice", "4G"]}, {}, "job.yaml: tiny-llama: convert_hf_to_gguf.py of b11434 has no option"),
        ({"args": ["--split-max-size"]}, {}, "wants a value after `--split-max-size`"),
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
    assert not (world / "dist").exists()


def test_nothing_heavy_is_downloaded_for_what_cannot_be_converted(
    hub: Hub, orchestrate: Callable[..., Answer], job: Callable[..., Path], world: Path
) -> None:
    config = json.loads(hub.files["config.json"])
    hub.files["config.json"] = json.dumps(config | quantized("awq")).encode()
    hub.files["README.md"] = b"---\nbase_model: org/plain\n---\n"
    file = job({"source": "org/m", "name": "m", "outtype": "f16"})
    answer = orchestrate("run", file)
    assert answer.code == 1 and "failed  fetch m" in answer.err and "name the unquantized model: org/plain" in answer.err
    assert not [path for path in hub.seen if path.startswith("GET") and path.endswith(".safetensors")]


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
