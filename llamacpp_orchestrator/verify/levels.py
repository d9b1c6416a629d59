"""Checks of an output up to a level: structure, content, load, logits."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from llamacpp_orchestrator.convert import config_keys
from llamacpp_orchestrator.convert import encoders
from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.job.check_levels import AUTO
from llamacpp_orchestrator.job.check_levels import CONTENT
from llamacpp_orchestrator.job.check_levels import EXCUSES
from llamacpp_orchestrator.job.check_levels import LEVELS
from llamacpp_orchestrator.job.check_levels import LOAD
from llamacpp_orchestrator.job.check_levels import LOGITS
from llamacpp_orchestrator.job.check_levels import STRUCTURE
from llamacpp_orchestrator.models import adapter_scaling
from llamacpp_orchestrator.models import headers
from llamacpp_orchestrator.models import safetensors
from llamacpp_orchestrator.system import interpreter as system_interpreter
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.command import UNLIMITED
from llamacpp_orchestrator.system.command import Limits
from llamacpp_orchestrator.system.interpreter import Interpreter
from llamacpp_orchestrator.system.interpreter import Run
from llamacpp_orchestrator.util.findings import Findings
from llamacpp_orchestrator.verify import gguf
from llamacpp_orchestrator.verify import hyperparameters
from llamacpp_orchestrator.verify import load
from llamacpp_orchestrator.verify import logits
from llamacpp_orchestrator.verify import pieces
from llamacpp_orchestrator.verify import templates
from llamacpp_orchestrator.verify import tensors
from llamacpp_orchestrator.verify import tokenizer
from llamacpp_orchestrator.verify import tokens
from llamacpp_orchestrator.verify.gguf import Contents
from llamacpp_orchestrator.verify.tensors import Sides

TENSOR_MAP, TIED = "tensor_map", "tie_word_embeddings"
# Options of upstream's script that make another thing of a model than the model; what is left out then is wanted.
PARTS = ("--mmproj", "--mtp", "--dspark", "--vocab-only")
UNLIKE = "get the source's files again, pin a newer tag, or look into upstream's log; `verify: structure` does without this check"
USED = (
    "this tag's llama.cpp takes such a tokenizer or template otherwise: pin a newer tag; `verify: content` leaves this check out"
)


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """One output to check: its files, what they were made from, and what the checks run with; `of` is the unquantized output.

    `checks`, `contents`: what reading the files has found, where that is done; `remote`: the source brings code of its own;
    `reference`: the Python of the environment that it is compared with, and `judge` what runs scripts in it, a process for each
    without one; `translated` answers with the model in the form that the tag's transformers reads.
    """

    kind: str
    files: tuple[Path, ...]
    checks: tuple[gguf.Checks, ...] = ()
    contents: Contents | None = None
    level: str = CONTENT
    args: tuple[str, ...] = ()
    views: tuple[Path, ...] = ()
    translated: Callable[[], Path] | None = None
    of: tuple[Path, ...] = ()
    base: tuple[Path, ...] = ()
    python: str = ""
    tree: Path = Path()
    env: tuple[tuple[str, str], ...] = ()
    limits: Limits = UNLIMITED
    remote: bool = False
    reference: str = ""
    judge: Run | None = None
    scratch: Path = Path()
    log: Path = Path()
    find: Callable[[str], Path] | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The levels that an output has passed, and what a reader should know about it."""

    levels: tuple[str, ...]
    notes: tuple[str, ...] = ()


def upto(level: str) -> tuple[str, ...]:
    """A level with all that come before it; auto goes as far as can be done in no time."""
    return LEVELS[: LEVELS.index(LOAD if level == AUTO else level) + 1]


def check(subject: Subject, run: Run, tell: Callable[[str], None]) -> Verdict:
    """Check an output as deep as asked; IntegrityError or CommandFailed say which level failed and why."""
    checks = subject.checks or gguf.check_set(subject.files)
    passed: tuple[str, ...] = (STRUCTURE,)
    notes: tuple[str, ...] = ()
    if CONTENT in upto(subject.level):
        tell("comparing weights")
        findings = _content(subject, {name for file_checks in checks for name in file_checks.blank}, run)
        if findings.failures:
            more = f"; and {len(findings.failures) - 1} more: {findings.failures[1]}" if findings.failures[1:] else ""
            message = f"{subject.files[0].name} is not what its source is: {findings.failures[0]}{more}"
            raise IntegrityError(message, UNLIKE)
        passed, notes = (*passed, CONTENT), findings.notes
    if subject.find and LOAD in upto(subject.level):
        tell("loading")
        why = _load(subject, checks[0], subject.find)
        if not why and subject.kind == "model" and not subject.of and not _partial(subject):
            tell("comparing tokens")
            notes = (*notes, *_spoken(subject, checks[0].architecture, subject.find, run).notes)
        passed, notes = (passed, (*notes, why)) if why else ((*passed, LOAD), notes)
        if not why and LOGITS in upto(subject.level):
            tell("comparing logits")
            findings, done = _logits(subject, checks[0].architecture, subject.find, tell)
            if findings.failures:
                raise IntegrityError(findings.failures[0], logits.WRONG, subject.log)
            passed, notes = (*passed, *((LOGITS,) if done else ())), (*notes, *findings.notes)
    return Verdict(levels=passed, notes=notes)


def _load(subject: Subject, checks: gguf.Checks, find: Callable[[str], Path]) -> str:
    """Load an output; the reason why not, or "". With `auto` a failure that may be the machine's own is such a reason."""
    if checks.architecture == "clip":
        return f"a projector is loaded only together with its model, {EXCUSES[LOAD]}"
    if subject.kind == "adapter" and not subject.base:
        return f"the job makes no base to load the adapter on, {EXCUSES[LOAD]}"
    try:
        base = subject.base if subject.kind == "adapter" else ()
        load.check(subject.files, base, checks, find, subject.log, subject.limits)
    except OrchestrateError as error:
        if subject.level == AUTO and not load.blames(error):
            return f"it was not loaded: {error.message.splitlines()[0]}"
        raise
    return ""


def _spoken(subject: Subject, architecture: str, find: Callable[[str], Path], run: Run) -> Findings:
    """Compare an output's tokens and chat template in use; IntegrityError or CommandFailed when they are not its source's."""
    metadata = (subject.contents or gguf.contents(subject.files)).metadata
    interpreter = _interpreter(subject, run, subject.log)
    view = subject.views[0]
    translated = subject.translated() if subject.translated else view
    checked = tokenizer.Words(
        files=subject.files, metadata=metadata, view=view, translated=translated, interpreter=interpreter, log=subject.log
    )
    # llama.cpp spells some scripts otherwise than BERT's tokenizers do, Korean above all, at every tag.
    strict = subject.level != AUTO and metadata.get("tokenizer.ggml.model") != "bert"
    findings = tokens.check(checked, find, strict)
    if not encoders.ENCODERS.fullmatch(architecture):
        findings += templates.check(checked, find)
    if findings.failures:
        raise IntegrityError(f"{subject.files[0].name} is not used as its source is: {findings.failures[0]}", USED, subject.log)
    return findings


def _logits(
    subject: Subject, architecture: str, find: Callable[[str], Path], tell: Callable[[str], None]
) -> tuple[Findings, bool]:
    """Compare next tokens: the findings, and False where there was nothing to compare."""
    left_out = ""
    if encoders.ENCODERS.fullmatch(architecture):
        left_out = "it reads and says nothing"
    elif architecture in logits.PAIRS:
        left_out = "it answers to a text and does not go on with it"
    elif _partial(subject):
        left_out = "only a part of the model was asked for"
    elif subject.remote:
        left_out = "its source brings code of its own"
    if left_out:
        return Findings(notes=(f"{left_out}, {EXCUSES[LOGITS]}",)), False
    adapter = subject.views[1] if subject.kind == "adapter" else None
    base = subject.base if adapter else ()
    limit = logits.EXTRA_SECONDS + load.limit(subject.files, base)
    run, limits = functools.partial(process.stream, limit=limit), msgspec.structs.replace(subject.limits, seconds=limit)
    judge = _interpreter(subject, subject.judge or run, subject.log)
    judge = msgspec.structs.replace(judge, python=subject.reference, limits=limits)
    sides = logits.Sides(files=subject.files, base=base, model=subject.views[0], adapter=adapter, interpreter=judge, run=run)
    return logits.check(sides, find, tell)


def _partial(subject: Subject) -> bool:
    return any(word.split("=")[0].startswith(PARTS) for word in subject.args)


def _content(subject: Subject, blank: set[str], run: Run) -> Findings:
    have = subject.contents or gguf.contents(subject.files)
    if subject.of:
        return _quantized(gguf.contents(subject.of), have, subject.args)
    if subject.kind == "adapter":
        return _adapter(subject.views[1], have)
    model = subject.views[0]
    if _partial(subject):
        line = f"only a part of the model was asked for ({' '.join(subject.args)}), so it was not compared with it"
        return Findings(notes=(line,)) + _zeros_of_part(subject, have, blank, run)
    rows = have.tensors["token_embd.weight"][1].shape if "token_embd.weight" in have.tensors else ()
    config = safetensors.read_json(model / "config.json")
    behind = encoders.compare(model, config, have.metadata, headers.read(model).names, _shapes(have))
    source = tokenizer.read(model)
    findings = tokenizer.compare(source, have.metadata, rows[-1] if rows else 0)
    return _tensors(subject, have, blank, run) + findings + _pieces(subject, source, have, run) + _numbers(subject, have) + behind


def _pieces(subject: Subject, source: tokenizer.TokenizerFiles, have: Contents, run: Run) -> Findings:
    """Compare what a tokenizer cuts by; a sentencepiece file is read by the environment's own library."""
    file = next((path for name in pieces.SENTENCEPIECE if (path := subject.views[0] / name).is_file()), None)
    if file is None or have.metadata.get("tokenizer.ggml.model") not in (pieces.SENTENCES, pieces.UNIGRAM):
        return pieces.compare(source, have.metadata, None)
    answer = _ask(subject, tokens.SCRIPT, {"view": str(subject.views[0]), "texts": [], "pieces": True}, run)
    return pieces.compare(source, have.metadata, msgspec.convert(answer["pieces"], pieces.Pieces | None), file.read_bytes())


def _numbers(subject: Subject, have: Contents) -> Findings:
    if "--mistral-format" in subject.args:
        return Findings(notes=("upstream read Mistral's params.json and not config.json, so its numbers were not compared",))
    return hyperparameters.check(subject.views[0], have, subject.tree)


def _shapes(have: Contents) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, (_, tensor) in have.tensors.items()}


def _quantized(before: Contents, after: Contents, args: tuple[str, ...]) -> Findings:
    findings = tensors.same_shape(_shapes(before), _shapes(after))
    # llama-quantize sets what --override-kv KEY=TYPE:VALUE asks for.
    overridden = {word.partition("=")[0] for word in args} | {word.split("=")[1] for word in args if word.count("=") > 1}
    own = ("tokenizer.", f"{before.metadata.get('general.architecture')}.")
    keys = [key for key in before.metadata if key.startswith(own) and key not in overridden]
    changed = [key for key in keys if before.metadata[key] != after.metadata.get(key)]
    line = f"{tensors.listed(changed)} is not as in the file that it was made from"
    return findings + Findings(failures=(line,) if changed else ())


def _adapter(folder: Path, have: Contents) -> Findings:
    file = folder / "adapter_model.safetensors"
    # PEFT saves the base's own vocabulary beside an adapter that changes it; that is not the adapter's, and stays out.
    header = {
        name: value for name, value in safetensors.safetensors_header(file).items() if adapter_scaling.MATRIX.fullmatch(name)
    }
    begin = safetensors.data_begin(file)
    theirs = {
        name for name, value in header.items() if _silent(file, *(begin + at for at in value["data_offsets"]))
    }  # fmt: skip
    mine = {
        name for name, (path, tensor) in have.tensors.items()
        if _silent(path, tensor.start, tensor.start + tensor.size)
    }  # fmt: skip
    findings = tensors.adapter({name: tuple(value["shape"]) for name, value in header.items()}, _shapes(have), (theirs, mine))
    due = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("lora_alpha")
    alpha = have.metadata.get("adapter.lora.alpha")
    same = isinstance(due, (int, float)) and isinstance(alpha, float) and abs(alpha - due) <= 1e-6 * abs(due)
    return findings + Findings(failures=() if same else (f"its alpha is {alpha}, where the source's is {due}",))


def _silent(path: Path, start: int, end: int) -> bool:
    with path.open("rb") as file:
        file.seek(start)
        while start < end and (chunk := file.read(min(1 << 20, end - start))):
            if any(chunk):
                return False
            start += len(chunk)
    return True


def _weights(folder: Path) -> dict[str, list[Any]]:
    """Every tensor of a model's safetensors by name: [file, begin and end of its bytes there, type, shape]."""
    places: dict[str, list[Any]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        begin, header = safetensors.data_begin(path), safetensors.safetensors_header(path)
        for name, value in header.items():
            if name != "__metadata__":
                start, end = value["data_offsets"]
                places[name] = [str(path), begin + start, begin + end, value["dtype"], value["shape"]]
    return places


def _question(subject: Subject, have: Contents, blank: set[str], source: dict[str, list[Any]]) -> dict[str, Any]:
    blocks = [count for key, count in have.metadata.items() if key.endswith(".block_count") and isinstance(count, int)]
    return {
        "package": str(subject.tree / "gguf-py"),
        "architecture": str(have.metadata.get("general.architecture")),
        "blocks": max(blocks, default=0),
        "source": {name: place[:4] for name, place in source.items()},
        # The others have no zeros that must be accounted for, so they need not be read again.
        "output": {
            name: [str(path), tensor.start, tensor.start + tensor.size, tensor.type]
            for name, (path, tensor) in have.tensors.items()
            if name in blank
        },
        "names": list(have.tensors),
        "expect": "",
    }


def _zeros_of_part(subject: Subject, have: Contents, blank: set[str], run: Run) -> Findings:
    """Tensors of a projector or another part that are all zero, and not so in the source."""
    source = _weights(subject.views[0])
    if not source or not blank:
        return Findings()
    answer = _ask(subject, TENSOR_MAP, _question(subject, have, blank, source), run)
    sides = Sides(source={name: tuple(place[4]) for name, place in source.items()}, output=_shapes(have), mapped=answer["mapped"])
    whole = {name: tuple(counts) for name, counts in answer["zeros"].items() if counts[0] == have.tensors[name][1].elements}
    return tensors.zeroed(sides, whole, answer["spare"])


def _tensors(subject: Subject, have: Contents, blank: set[str], run: Run) -> Findings:
    model = subject.views[0]
    source = _weights(model)
    if not source:
        return Findings(notes=("its source has no safetensors, so its tensors were not compared",))
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    question = _question(subject, have, blank, source)
    answer = _ask(subject, TENSOR_MAP, question, run)
    sides = Sides(
        source={name: tuple(place[4]) for name, place in source.items()},
        output=_shapes(have),
        mapped=encoders.placed(answer["mapped"], _shapes(have)),
        names=tuple(answer["known"]) if "LM" in str(config.get("architectures")) else (),
        blocks=question["blocks"],
        headless=_headless(config, model),
    )
    findings = tensors.account(sides) + tensors.zeroed(sides, answer["zeros"], answer["spare"])
    doubtful = tensors.uncertain(sides)
    if findings.failures or not (doubtful.absent or doubtful.shapes):
        return findings
    translated = subject.translated() if subject.translated else model
    class_question = question | {"output": {}, "expect": str(translated)}
    expected = _ask(subject, TENSOR_MAP, class_question, run, translated)["expected"]
    return findings + tensors.decide(sides, doubtful, expected)


def _headless(config: dict[str, Any], folder: Path) -> bool:
    tied = next((part[TIED] for part in config_keys.parts(config) if TIED in part), None)
    # What sentence-transformers saved only reads: it needs no matrix that turns numbers into tokens.
    return bool(tied) or (folder / "modules.json").is_file()


def _ask(subject: Subject, script: str, question: dict[str, Any], run: Run, *more: Path) -> dict[str, Any]:
    places = (subject.tree, *subject.files, *subject.views, *more)
    hint = "the comparison itself failed, see the log; `verify: structure` for this model does without it"
    return system_interpreter.ask(_interpreter(subject, run, subject.log), script, question, dict[str, Any], places, hint)


def _interpreter(subject: Subject, run: Run, log: Path) -> Interpreter:
    scratch, env, limits = subject.scratch, subject.env, subject.limits
    return Interpreter(python=subject.python, run=run, env=env, limits=limits, scratch=scratch, log=log)
