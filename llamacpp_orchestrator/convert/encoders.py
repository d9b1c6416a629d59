"""What stands behind a model that embeds or ranks: pooling, more layers, a classifier's head; and what a tag writes of it."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator.convert import capabilities
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import quoted
from llamacpp_orchestrator.models.safetensors import Shapes
from llamacpp_orchestrator.models.safetensors import read_json
from llamacpp_orchestrator.util.findings import Findings

# Architectures that only read (src/llama-arch.cpp); they load well, and then have no token to say.
ENCODERS = re.compile(r".*bert.*|t5encoder|gemma-embedding|wavtokenizer-dec")

DENSE_OPTION = "--sentence-transformers-dense-modules"
# The ways of pooling that llama.cpp has, as a GGUF numbers them (gguf-py/gguf/constants.py, PoolingType).
POOLING = {"mean": 1, "cls": 2, "lasttoken": 3}
# Modules of sentence-transformers that are the model itself, do nothing to its numbers, or are done by every runtime.
HARMLESS = ("Transformer", "Normalize", "Dropout", "LogitScore", "MLMTransformer")
CLASSIFIER = "ForSequenceClassification"
UNNAMED = ["LABEL_0", "LABEL_1"]
ALONE = "take it out of a copy of modules.json, and apply it to what llama.cpp gives"


class Module(msgspec.Struct, frozen=True, kw_only=True):
    """One module of sentence-transformers: the last part of its type, its folder, and what its config.json says."""

    kind: str
    path: str
    config: dict[str, Any] = {}


def modules(folder: Path) -> tuple[Module, ...]:
    """The modules of a model in their order, () for a model that sentence-transformers did not save."""
    try:
        listed = msgspec.json.decode((folder / "modules.json").read_bytes(), type=list[dict[str, Any]])
    except (OSError, ValueError, RecursionError):
        return ()
    return tuple(_module(folder, str(each.get("type")), str(each.get("path", ""))) for each in listed)


def _module(folder: Path, kind: str, path: str) -> Module:
    config: dict[str, Any] = {}
    if path and ".." not in Path(path).parts and (folder / path / "config.json").is_file():
        try:
            config = read_json(folder / path / "config.json")
        except OrchestrateError:
            config = {}  # upstream has words for it, if it reads it
    return Module(kind=kind.rpartition(".")[2], path=path, config=config)


def pooling(found: Sequence[Module]) -> tuple[str, ...]:
    """How the tokens of a text are pooled, several ways one beside the other; () where that is not said.

    sentence-transformers 5.4 on says it by `pooling_mode`, before by a flag for each way.
    """
    config = next((module.config for module in found if module.kind == "Pooling"), {})
    named = config.get("pooling_mode")
    flags = [key.removeprefix("pooling_mode_") for key, value in config.items() if key.startswith("pooling_mode_") and value]
    names = [named] if isinstance(named, str) else named if isinstance(named, list) else flags
    return tuple(str(name).removesuffix("_tokens").removesuffix("_token") for name in names)


def writes_pooling(classes: Sequence[ast.ClassDef]) -> frozenset[str]:
    """The ways of pooling that a class of a tag's scripts writes down."""
    functions = [line for node in classes for line in node.body if isinstance(line, ast.FunctionDef)]
    shared = [line for line in functions if line.name == "_try_set_pooling_type"]
    calling = any(shared[0].name in capabilities.called(line) for line in functions if line not in shared) if shared else False
    texts = {text for line in functions if calling or line not in shared for text in capabilities.within(line)}
    flags = {text.removeprefix("pooling_mode_") for text in texts if text.startswith("pooling_mode_")}
    return frozenset(flag.removesuffix("_tokens").removesuffix("_token") for flag in flags)


def writes_dense(classes: Sequence[ast.ClassDef]) -> tuple[str, ...]:
    """The folders of the Dense modules that a class of a tag's scripts writes, perhaps only with DENSE_OPTION."""
    own = [node for node in classes if node.name != "ModelBase"]
    if takes_option(own):
        return ("2_Dense", "3_Dense")
    return tuple(sorted({text for node in own for text in capabilities.within(node) if text.endswith("_Dense")}))


def takes_option(classes: Sequence[ast.ClassDef]) -> bool:
    """Whether a class writes Dense modules when DENSE_OPTION is given."""
    return _uses([node for node in classes if node.name != "ModelBase"], DENSE_OPTION[2:].replace("-", "_"))


def _uses(classes: Sequence[ast.ClassDef], attribute: str) -> bool:
    nodes = (node for each in classes for node in ast.walk(each))
    return any(isinstance(node, ast.Attribute) and node.attr == attribute for node in nodes)


def check(folder: Path, source: str, tag: str, config: dict[str, Any], classes: Sequence[ast.ClassDef], *, whole: bool) -> None:
    """Raise OrchestrateError for what a tag would drop of an embedding model or a classifier, or make unusable.

    `classes` is the lineage that converts it; `whole` says that the weights are here, and those of its modules with them.
    """
    found = modules(folder)
    refusal = _pooling(found, tag, classes) or _layers(found, tag, classes, config, folder if whole else None)
    refusal = refusal or _labels(config, classes)
    if refusal:
        raise OrchestrateError(f"{source}: {refusal[0]}", refusal[1])


def _pooling(found: Sequence[Module], tag: str, classes: Sequence[ast.ClassDef]) -> tuple[str, str] | None:
    modes = pooling(found)
    if any(module.kind == "SpladePooling" for module in found):
        return "it makes sparse embeddings (SpladePooling), which llama.cpp does not", "use another runtime for this model"
    if len(modes) > 1 or set(modes) - POOLING.keys():
        alone = "take Pooling out of a copy of modules.json, and pool what `--pooling none` gives"
        return f"it pools by {quoted(' and '.join(modes))}; llama.cpp has mean, cls and lasttoken alone", alone
    if modes and classes and modes[0] not in writes_pooling(classes):
        alone = f"pin a newer tag, or take Pooling out of a copy of modules.json and give llama.cpp `--pooling {modes[0][:4]}`"
        return f"{tag} would not write that it pools by {modes[0]}", alone
    return None


def _layers(
    found: Sequence[Module], tag: str, classes: Sequence[ast.ClassDef], config: dict[str, Any], folder: Path | None
) -> tuple[str, str] | None:
    dense = [module for module in found if module.kind == "Dense"]
    other = [module for module in found if module.kind not in (*HARMLESS, "Dense", "Pooling")]
    if other:
        return f"behind the model stands {quoted(other[0].kind)} ({quoted(other[0].path)}), which no tag writes", ALONE
    if not dense:
        return None
    paths = tuple(module.path for module in dense)
    if paths != writes_dense(classes)[: len(paths)]:
        what = f"behind the model stand layers ({quoted(', '.join(paths))}) that {tag} does not write"
        return what, f"pin a newer tag, or {ALONE}"
    for module in dense:
        if what := _unlike_dense(module):
            return f"the layer {module.path} has {what}, of which {tag} writes nothing", ALONE
        if folder and not (folder / module.path / "model.safetensors").is_file():
            return (
                f"the weights of the layer {module.path} are not in safetensors",
                "save it with sentence-transformers 3 or newer",
            )
    return _ends(dense, config) if takes_option(classes) else None


def _unlike_dense(module: Module) -> str:
    """What a layer has beside its matrix."""
    activation = str(module.config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    if not activation.endswith(".Identity"):
        return f"the activation {quoted(activation.rpartition('.')[2])}"
    return "a bias" if module.config.get("bias", True) else "a residual" if module.config.get("use_residual") else ""


def _ends(dense: Sequence[Module], config: dict[str, Any]) -> tuple[str, str] | None:
    """The first of these layers must take, and the last give, as much as the model gives (src/models/gemma-embedding.cpp)."""
    size = config.get("hidden_size")
    if dense[0].config.get("in_features") == size == dense[-1].config.get("out_features"):
        return None
    given = dense[-1].config.get("out_features")
    return (
        f"its last layer gives {quoted(given)} numbers, and llama.cpp can load it only with the model's own {quoted(size)}",
        ALONE,
    )


def _labels(config: dict[str, Any], classes: Sequence[ast.ClassDef]) -> tuple[str, str] | None:
    """With the two labels that transformers makes up, the scripts take a head for the layer before it (conversion/bert.py)."""
    names = config.get("architectures")
    labels = config.get("id2label") or (UNNAMED if config.get("num_labels", 2) == 2 else {})
    unnamed = list(labels.values() if isinstance(labels, dict) else labels) == UNNAMED
    name = str(names[0]) if isinstance(names, list) and names else ""
    # Of RoBERTa's kind the head has two layers of its own, by names that tell them apart.
    if not (name.endswith(CLASSIFIER) and unnamed) or "Roberta" in name or not _uses(classes, "cls_out_labels"):
        return None
    hint = 'name the two in its config.json, such as "id2label": {"0": "no", "1": "yes"}'
    return "its two labels have no names, and without them llama.cpp cannot load what is converted", hint


def options(folder: Path, tree: Path, classes: Sequence[ast.ClassDef]) -> tuple[str, ...]:
    """The option of this tag's script without which it would drop the Dense modules of a model."""
    known = DENSE_OPTION in capabilities.options(tree, "model")
    dense = any(module.kind == "Dense" for module in modules(folder))
    return (DENSE_OPTION,) if dense and known and takes_option(classes) else ()


def generates(metadata: Mapping[str, Any]) -> bool:
    """Whether a GGUF is of a model that goes on with a text, and so must know where to end."""
    architecture = str(metadata.get("general.architecture"))
    reads = metadata.get(f"{architecture}.attention.causal") is False or f"{architecture}.pooling_type" in metadata
    return not reads and not ENCODERS.fullmatch(architecture)


def placed(mapped: Mapping[str, str], output: Shapes) -> dict[str, str]:
    """The names of an output for those of its source, and of a classifier's last layer (conversion/bert.py)."""
    last = {name: to.replace("cls.", "cls.output.", 1) for name, to in mapped.items() if re.search(r"\bclassifier\.\w+$", name)}
    return {name: last[name] if last.get(name) in output else to for name, to in mapped.items()}


def compare(
    folder: Path,
    config: dict[str, Any],
    metadata: Mapping[str, Any],
    source: Sequence[str],
    output: Mapping[str, tuple[int, ...]],
) -> Findings:
    """Whether an output pools as its source does and has its Dense layers, and what of a classifier's head it lacks."""
    found, architecture = modules(folder), metadata.get("general.architecture")
    modes, have = pooling(found), metadata.get(f"{architecture}.pooling_type")
    failures = []
    if len(modes) == 1 and have != POOLING.get(modes[0]):
        shown = next((name for name, number in POOLING.items() if number == have), "nothing" if have is None else str(have))
        failures.append(f"it pools by {shown}, where the source pools by {modes[0]}")
    for number, module in enumerate((module for module in found if module.kind == "Dense"), 2):
        due = (module.config.get("in_features"), module.config.get("out_features"))
        if (mine := output.get(f"dense_{number}.weight")) != due:
            failures.append(f"the layer {module.path} {'is not there' if mine is None else f'has the shape {list(mine)}'}")
    notes = _head(str((config.get("architectures") or [""])[0]), source, output)
    if any(module.config.get("include_prompt") is False for module in found):
        notes = (*notes, "the source leaves a prompt out when it pools (include_prompt), llama.cpp does not")
    return Findings(failures=tuple(failures), notes=notes)


def _head(architecture: str, source: Sequence[str], output: Shapes) -> tuple[str, ...]:
    """What is said of a classifier whose scores are not those of its source."""
    if not architecture.endswith(CLASSIFIER):
        return ()
    pooler = [name for name in source if name.endswith("pooler.dense.weight")]
    if not any(name.startswith("cls.") for name in output):
        return ("upstream leaves out the classifier's head: what is left are embeddings, no scores",)
    if pooler and "cls.weight" not in output:
        return (f"upstream leaves out the classifier's pooler ({quoted(pooler[0])}): its scores differ from those of the source",)
    if architecture.startswith("DistilBert"):
        return ("llama.cpp puts tanh into the classifier's head, the source ReLU: its scores differ from those of the source",)
    return ()
