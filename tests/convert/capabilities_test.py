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

from llamacpp_orchestrator.convert import capabilities
from llamacpp_orchestrator.convert import quantized
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


def listed(python: Path, tree: Path, env: dict[str, str]) -> set[str]:
    """The architectures that the script itself prints."""
    if not (tree / "conversion").is_dir() and b"--print-supported-models" not in (tree / "convert_hf_to_gguf.py").read_bytes():
        return set(json.loads(said(python, tree, "-c", LISTING, **env)))
    printed = said(python, tree, "convert_hf_to_gguf.py", "--print-supported-models", **env)
    return set(re.findall(r"^.*  - (\S+)$", printed, re.MULTILINE))


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


@pytest.mark.slow
@pytest.mark.parametrize("tag", EVERY)
def test_what_a_script_converts_its_text_names(
    tag: str, tree: Tree, python: Path, mistral_common: Callable[[Path], Path], compiled: dict[str, str]
) -> None:
    extra = {"PYTHONPATH": str(mistral_common(python))} if tag == "0.3.16" else {}
    names = listed(python, tree(tag), {**compiled, **extra})
    assert len(names) > 50 and all(capabilities.knows(tree(tag), name) for name in names)
    assert len(names & capabilities.architectures(tree(tag))) > 0.9 * len(names)
    assert not capabilities.knows(tree(tag), "XyzzyForCausalLM")


@pytest.mark.parametrize("tag", EVERY)
def test_each_tag_has_options_and_a_class_for_llama(tag: str, tree: Tree) -> None:
    root = tree(tag)
    lineage = [node.name for node in capabilities.converter(root, "LlamaForCausalLM")]
    assert lineage[0] == "LlamaModel" and lineage[-1] in ("Model", "ModelBase")
    assert capabilities.converter(root, "NoSuchModel") == ()
    assert {"f32", "f16", "bf16", "q8_0", "auto"} <= set(capabilities.outtypes(root, "model"))
    assert {"f32", "f16"} <= set(capabilities.outtypes(root, "adapter"))


@pytest.mark.slow
@pytest.mark.parametrize(("tag", "kind"), [(tag, kind) for tag in ("0.3.1", "b11434") for kind in SCRIPTS])
def test_options_are_those_that_the_script_lists(tag: str, kind: str, tree: Tree, python: Path, compiled: dict[str, str]) -> None:
    shown = said(python, tree(tag), SCRIPTS[kind], "--help", **compiled)
    names = set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", shown, re.MULTILINE)) - {"--help"}
    options = set(capabilities.options(tree(tag), kind))
    assert len(names) > 5 and names <= options and all(re.search(rf"(?<!\S){name}\b", shown) for name in options)


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
    assert capabilities.outtypes(tmp_path, "model") == capabilities.options(tmp_path, "adapter") == ()
    assert capabilities.converter(tmp_path, "A") == ()


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
    assert capabilities.options(tmp_path, "model") == ("--outtype", "-n", "--dry-run", "--list", "--odd", "--worked-out")


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
        list(pool.map(lambda number: capabilities.converter(tmp_path / str(number), "A"), range(4)))
    assert seen == [1, 1, 1, 1]


@pytest.mark.parametrize(("tag", "chooses"), [("0.3.1", True), ("b9760", False), ("b11434", False)])
def test_whether_a_tag_can_choose_the_type_of_an_adapter(tag: str, chooses: bool, tree: Callable[[str], Path]) -> None:
    assert capabilities.chooses_adapter_type(tree(tag)) is chooses
