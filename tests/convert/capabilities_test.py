"""What is read out of upstream's sources, against what the scripts themselves say when they are run."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llamacpp_orchestrator.convert import arguments
from llamacpp_orchestrator.convert import capabilities
from llamacpp_orchestrator.convert import quantized
from llamacpp_orchestrator.convert.capabilities import Architectures
from llamacpp_orchestrator.convert.capabilities import Option
from llamacpp_orchestrator.environment import indexes
from llamacpp_orchestrator.source.tree import SCRIPTS

Tree = Callable[[str], Path]
# b3878's time, the middle of 2025, and the ends of what the package has.
EVERY = ("0.3.1", "0.3.16", "b9760", "b11434")
# The oldest script has no option that lists them, and a list of models without projectors.
LISTING = "import json, convert_hf_to_gguf as script; print(json.dumps(sorted(script.Model._model_classes)))"


def said(python: Path, tree: Path, *argv: str, **env: str) -> str:
    """What the real interpreter says, on both streams."""
    command = [str(python), *argv]
    known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | env
    done = subprocess.run(command, cwd=tree, env=known, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    return done.stdout


def listed(python: Path, tree: Path, env: dict[str, str]) -> Architectures:
    """The registry as the script itself prints it."""
    if not (tree / "conversion").is_dir() and b"--print-supported-models" not in (tree / "convert_hf_to_gguf.py").read_bytes():
        return Architectures(text=frozenset(json.loads(said(python, tree, "-c", LISTING, **env))), mmproj=frozenset())
    printed = said(python, tree, "convert_hf_to_gguf.py", "--print-supported-models", **env)
    text, mmproj = (frozenset(re.findall(r"^.*  - (\S+)$", part, re.MULTILINE)) for part in printed.split("MMPROJ models:"))
    return Architectures(text=text, mmproj=mmproj)


@pytest.fixture(scope="session")
def mistral_common(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """A folder with the package that the scripts of 2025 load in any case."""
    folder = tmp_path_factory.mktemp("mistral-common")

    def install(python: Path) -> Path:
        if not any(folder.iterdir()):
            words = [indexes.uv(), "pip", "install", "--quiet", "--target", str(folder), "--python", str(python)]
            subprocess.run([*words, "mistral-common"], check=True)
        return folder

    return install


@pytest.mark.parametrize("tag", EVERY)
def test_the_registry_is_what_the_script_prints(
    tag: str, tree: Tree, python: Path, mistral_common: Callable[[Path], Path], compiled: dict[str, str]
) -> None:
    found = capabilities.architectures(tree(tag))
    assert found and len(found.text) > 50
    extra = {"PYTHONPATH": str(mistral_common(python))} if tag == "0.3.16" else {}
    assert found == listed(python, tree(tag), {**compiled, **extra})


@pytest.mark.parametrize("tag", EVERY)
def test_each_tag_has_hashes_and_options_and_a_class_for_llama(tag: str, tree: Tree) -> None:
    root = tree(tag)
    assert len(capabilities.hashes(root)) >= 30
    lineage = [node.name for node in capabilities.converter(root, "LlamaForCausalLM")]
    assert lineage[0] == "LlamaModel" and lineage[-1] in ("Model", "ModelBase")
    assert capabilities.reads_gpt2(capabilities.converter(root, "LlamaForCausalLM"), ("LlamaForCausalLM",))
    assert capabilities.converter(root, "NoSuchModel") == []
    assert {"f32", "f16", "bf16", "q8_0", "auto"} <= set(capabilities.outtypes(root, "model"))
    assert {"f32", "f16"} <= set(capabilities.outtypes(root, "adapter"))
    by_name = {name: option for kind in SCRIPTS for option in capabilities.options(root, kind) for name in option.names}
    assert by_name["--verbose"].words == 0 and by_name["--metadata"].words == 1 and by_name["lora_path"].words == 1
    assert by_name["--split-max-size"] == Option(names=("--split-max-size",))


@pytest.mark.parametrize("tag", EVERY)
def test_where_the_vocabulary_is_read_in_another_way_nothing_is_certain(tag: str, tree: Tree) -> None:
    root = tree(tag)
    for name in ("MPTForCausalLM", "ChatGLMModel", "BertModel", "GemmaForCausalLM", "T5ForConditionalGeneration"):
        assert name in (capabilities.architectures(root) or Architectures(text=frozenset(), mmproj=frozenset())).text
        assert not capabilities.reads_gpt2(capabilities.converter(root, name), (name,)), name
    assert capabilities.reads_gpt2(capabilities.converter(root, "Qwen2ForCausalLM"), ("Qwen2ForCausalLM",))
    assert not capabilities.reads_gpt2([], ())


def test_a_class_that_leaves_the_vocabulary_to_the_one_above_is_followed(tree: Tree) -> None:
    classes = capabilities.converter(tree("b11434"), "Qwen3ForCausalLM")
    assert [node.name for node in classes][:2] == ["Qwen3Model", "Qwen2Model"]
    assert capabilities.reads_gpt2(classes, ("Qwen3ForCausalLM", ""))
    assert not capabilities.reads_gpt2(classes, ("InternS1ForConditionalGeneration",)), "it is an exception that the class names"
    assert not capabilities.reads_gpt2(capabilities.converter(tree("b11434"), "DreamModel"), ("DreamModel",)), (
        "it has its own get_vocab_base"
    )


@pytest.mark.parametrize(
    ("tag", "methods", "strict"), [("0.3.1", set(), False), ("b9760", {"fp8", "gptq"}, True), ("b11434", {"fp8", "gptq"}, True)]
)
def test_what_quantized_weights_a_tag_reads(tag: str, methods: set[str], strict: bool, tree: Tree) -> None:
    found = quantized.known_to(tree(tag))
    assert found.strict is strict and methods <= found.methods and "bitsandbytes" not in found.methods
    assert ("pack-quantized" in found.formats) is strict


def test_layouts_that_are_recognized_by_a_file(tree: Tree) -> None:
    assert "lev_release.json" in capabilities.layouts(tree("b11434")) and "config.json" not in capabilities.layouts(
        tree("b11434")
    )
    assert capabilities.layouts(tree("b9760")) == capabilities.layouts(tree("0.3.1")) == frozenset()


def test_what_a_source_mentions(tree: Tree) -> None:
    assert capabilities.mentions(tree("b11434"), "compressed-tensors") and not capabilities.mentions(
        tree("0.3.1"), "compressed-tensors"
    )


BROKEN = {
    "no Python": "def (",
    "names that are worked out": '@Model.register(*NAMES)\nclass A:\n    pass\n@Model.register("B")\nclass B:\n    pass\n',
    "nothing registered": "class A:\n    pass\n",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN.keys())
def test_a_script_that_cannot_be_read_whole_knows_nothing_for_certain(text: str, tmp_path: Path) -> None:
    (tmp_path / "convert_hf_to_gguf.py").write_text(text)
    assert capabilities.architectures(tmp_path) is None
    assert capabilities.outtypes(tmp_path, "model") == capabilities.options(tmp_path, "adapter") == ()
    assert capabilities.hashes(tmp_path) == frozenset()
    assert capabilities.converter(tmp_path, "A") == []


@pytest.mark.parametrize(
    "maps",
    [
        'TEXT_MODEL_MAP = {"A": "a", NAME: "b"}\nMMPROJ_MODEL_MAP = {"C": "c"}\n',
        'TEXT_MODEL_MAP = {"A": "a", **OTHERS}\nMMPROJ_MODEL_MAP = {"C": "c"}\n',
        'TEXT_MODEL_MAP = {"A": "a"}\n',
    ],
)
def test_half_a_map_is_none(maps: str, tmp_path: Path) -> None:
    (tmp_path / "conversion").mkdir()
    (tmp_path / "conversion" / "__init__.py").write_text(maps)
    assert capabilities.architectures(tmp_path) is None


def test_options_as_a_script_may_write_them(tmp_path: Path) -> None:
    (tmp_path / "convert_hf_to_gguf.py").write_text(
        'p.add_argument("--outtype", type=str, choices=["f32", "q8_0"], default="f16")\n'
        'p.add_argument("-n", "--dry-run", action="store_true")\n'
        'p.add_argument("--list", nargs="*")\n'
        'p.add_argument("--odd", action=Odd)\n'
        'p.add_argument("--worked-out", choices=TYPES)\n'
        "p.add_argument(NAME)\n"
        'p.add_argument("model")\n'
    )
    (tmp_path / "convert_lora_to_gguf.py").write_text("print()")
    assert capabilities.outtypes(tmp_path, "model") == ("f32", "q8_0")
    assert capabilities.outtypes(tmp_path, "adapter") == ()
    assert capabilities.options(tmp_path, "model") == (
        Option(names=("--outtype",), choices=("f32", "q8_0")),
        Option(names=("-n", "--dry-run"), words=0),
        Option(names=("--list",), words=-1),
        Option(names=("--odd",), words=-1),
        Option(names=("--worked-out",)),
        Option(names=("model",)),
    )


def test_trees_are_built_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / SCRIPTS["model"]).write_text(f"NUMBER = {number}", encoding="utf-8")
    at_work, seen = list[bytes](), list[int]()

    def build(source: bytes) -> ast.Module:
        at_work.append(source)
        time.sleep(0.02)
        seen.append(len(at_work))
        at_work.remove(source)
        return ast.Module(body=[], type_ignores=[])

    monkeypatch.setattr(ast, "parse", build)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: capabilities.options(tmp_path / str(number), "model"), range(4)))
    assert seen == [1, 1, 1, 1]


@pytest.mark.parametrize(("tag", "chooses"), [("0.3.1", True), ("b9760", False), ("b11434", False)])
def test_whether_a_tag_can_choose_the_type_of_an_adapter(tag: str, chooses: bool, tree: Callable[[str], Path]) -> None:
    assert arguments.chooses_adapter_type(tree(tag)) is chooses
