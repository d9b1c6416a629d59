"""Upstream's two conversion scripts: the commands, the interpreter that is warmed once for all of them, and their failures."""

from __future__ import annotations

import ast
import json
import queue
import re
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llamacpp_orchestrator import process
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.process import Command

SCRIPTS = {"model": "convert_hf_to_gguf.py", "adapter": "convert_lora_to_gguf.py"}
HOST = Path(__file__).parent / "inside" / "host.py"
POLL_SECONDS = 0.02

# Upstream's own words → what they likely mean, and what to do. First match wins.
KNOWN = (
    (
        r"vision_config / audio_config not found|This model does not support multimodal",
        "the model has no vision or audio part",
        "leave `mmproj` out for this model",
    ),
    (
        r"Model (\S+) is not supported",
        "this tag's converter does not know the architecture {0}",
        "pin a newer tag, or see which it knows: orchestrate exec JOB -- convert_hf_to_gguf.py --print-supported-models",
    ),
    (
        r"BPE pre-tokenizer was not recognized",
        "this tag does not know the model's tokenizer",
        "pin a newer tag; if the tokenizer was changed while fine-tuning, use the original's tokenizer files",
    ),
    (
        r"trust_remote_code|requires you to execute the .* file",
        "the model wants to run its own Python code",
        "read that code, then set `trust_remote_code: true` for this model",
    ),
    (
        r"stat: path should be string.*NoneType|Either model_file or model_proto must be specified"
        r"|File not found: .*tokenizer\.model|Can't load tokenizer|Couldn't instantiate the backend tokenizer",
        "the model has no tokenizer that this tag can read",
        "add the tokenizer files of the original model (tokenizer.json or tokenizer.model)",
    ),
    (
        r"mmap length is greater than file size|incomplete metadata|HeaderTooLarge|InvalidHeader|MetadataIncompleteBuffer",
        "a safetensors file is cut or damaged",
        "download or copy it again",
    ),
    (r"Missing tensors: (.*)", "tensors that the index names are in no file: {0}", "get all shards of the model"),
    (
        r"Can not map tensor '([^']+)'|Unable to map tensor|Unexpected name '([^']+)': Not a lora_A or lora_B tensor",
        "this architecture has no place for a tensor ({0})",
        "pin a newer tag, or merge the adapter into its base and convert that",
    ),
    (
        r"Embeddings is present in the adapter",
        "the adapter also trains the vocabulary, which a GGUF adapter cannot hold",
        "merge it into its base and convert that",
    ),
    (r"does not exist|No such file or directory: '([^']+)'", "a file that the script wants is not there", "see the log"),
    (r"No space left on device|Errno 28", "the disk is full", "free some space and run again"),
    (
        r"MemoryError|Unable to allocate|not enough memory",
        "the machine ran out of memory",
        "close other programs, or use --jobs 1",
    ),
    (
        r"unrecognized arguments: (.*)",
        "this tag's script does not have the option {0}",
        "correct `args`, or pin a tag that has it",
    ),
    (
        r"No module named '([^']+)'",
        "the environment lacks the module {0}",
        "add it under `environment.overrides` or choose another tag",
    ),
)


def outtypes(tree: Path, kind: str) -> tuple[str, ...]:
    """The values that this tag's script takes for `--outtype`, read from its source; () when it does not say."""
    for node in ast.walk(ast.parse((tree / SCRIPTS[kind]).read_bytes())):
        if (
            isinstance(node, ast.Call)
            and node.args
            and isinstance(node.args[0], ast.Constant)
            and node.args[0].value == "--outtype"
        ):
            choices = next((word.value for word in node.keywords if word.arg == "choices"), None)
            if isinstance(choices, (ast.List, ast.Tuple)):
                return tuple(str(item.value) for item in choices.elts if isinstance(item, ast.Constant))
    return ()


def check_projector(tree: Path, tag: str, name: str, config: dict[str, Any]) -> None:
    """Raise JobError when a tag has no projector for a model, or cannot make any, as far as its source tells."""
    text = (tree / SCRIPTS["model"]).read_bytes()
    if b'"--mmproj"' not in text:
        raise JobError(
            f"{name}: {tag} cannot make projectors (its script has no --mmproj)", "pin a newer tag, or leave `mmproj` out"
        )
    known = projectors(tree)
    vision = config.get("vision_config")
    named = (vision.get("architectures") if isinstance(vision, dict) else None) or config.get("architectures")
    if not known or not isinstance(named, list) or not named or named[0] in known:
        return
    if not any(config.get(key) for key in ("vision_config", "audio_config")):
        raise JobError(
            f"{name} has no vision or audio part: its config.json says {named[0]}", "leave `mmproj` out for this model"
        )
    raise JobError(f"{name}: {tag} has no projector for {named[0]}", "pin a newer tag, or leave `mmproj` out")


def projectors(tree: Path) -> frozenset[str]:
    """The architectures that this tag makes projectors for, read from its source; empty when it does not say."""
    table = tree / "conversion" / "__init__.py"
    if table.is_file():
        for node in ast.parse(table.read_bytes()).body:
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "MMPROJ_MODEL_MAP" and node.value:
                return frozenset(ast.literal_eval(node.value))
    return frozenset()


def model_command(python: str, tree: Path, view: Path, outfile: Path, outtype: str, name: str, args: tuple[str, ...]) -> Command:
    """The call that converts a base; the job's own arguments come last, so that they have the last word."""
    options = ("--outfile", str(outfile), "--outtype", outtype, "--model-name", name, *args)
    return Command((python, str(tree / SCRIPTS["model"]), str(view), *options), cwd=str(outfile.parent))


def adapter_command(
    python: str, tree: Path, base: Path, view: Path, outfile: Path, outtype: str, args: tuple[str, ...]
) -> Command:
    """The call that converts an adapter; always with `--base`, or the script would ask the hub."""
    options = ("--base", str(base), "--outfile", str(outfile), "--outtype", outtype, *args)
    return Command((python, str(tree / SCRIPTS["adapter"]), str(view), *options), cwd=str(outfile.parent))


def environment(home: Path) -> tuple[tuple[str, str], ...]:
    """All that a converter may know: an allow-list of variables, an empty Hugging Face home, no network, UTF-8."""
    offline = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    python = {"PYTHONUTF8": "1", "PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return process.clean_env(HF_HOME=str(home), **offline, **python)


def explain(tail: str) -> tuple[str, str]:
    """The likely cause and the remedy for upstream's last lines; two empty texts when nobody knows."""
    for pattern, cause, remedy in KNOWN:
        if match := re.search(pattern, tail):
            found = [group for group in match.groups() if group]
            return cause.format(*(found or ["?"])), remedy
    return "", ""


def failed(error: CommandFailed) -> CommandFailed:
    """The same failure with the likely cause in front, and never upstream's advice to load pickles unsafely."""
    cause, remedy = explain(error.tail)
    shown = "\n".join(line for line in error.tail.splitlines()[-6:] if "weights_only" not in line)
    hint = remedy or (
        "run again with --jobs 1, or free some memory" if error.code == -9 else "the log holds upstream's whole output"
    )
    message = f"{cause}: {error.message}" if cause else f"{error.message}; its last words:\n{shown}"
    return CommandFailed(message, code=error.code, tail=error.tail, hint=hint, log=error.log)


def progress_of(line: str) -> str:
    """What a line of upstream's output says about how far it is: "45%", or nothing."""
    found = re.findall(r"(\d{1,3})%\|", line)
    return f"{found[-1]}%" if found else ""


def can_fork(system: str) -> bool:
    """Whether a warm interpreter may be forked: macOS can, but its numeric libraries do not survive it."""
    return system == "linux"


class Warm:
    """One interpreter that has torch and transformers loaded and forks a child for each conversion; started when first used."""

    def __init__(self, python: str, tree: Path, env: tuple[tuple[str, str], ...], log: Path) -> None:
        self._command = Command((python, str(HOST), str(tree)), cwd=str(tree), env=env)
        self._log = log
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._answers: dict[int, queue.SimpleQueue[int]] = {}
        self._count = 0

    def convert(self, command: Command, log: Path, tell: Callable[[str], None]) -> None:
        """Run one script as a child of the warm interpreter; CommandFailed as if it had been a process of its own."""
        answer: queue.SimpleQueue[int] = queue.SimpleQueue()
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(f"$ {command}\n", encoding="utf-8")
        self._ask(command, log, answer)
        shown = ""
        while True:
            try:
                code = answer.get(timeout=POLL_SECONDS if not shown else 0.2)
                break
            except queue.Empty:
                now = progress_of(process.tail_of(log).rsplit("\n", 1)[-1])
                if now != shown:
                    shown = now
                    tell(now)
        if code:
            message = f"`{Path(command.argv[1]).name}` {process.ended(code)}"
            raise failed(CommandFailed(message, code=code, tail=process.tail_of(log), log=log))

    def _ask(self, command: Command, log: Path, answer: queue.SimpleQueue[int]) -> None:
        with self._lock:
            if self._child is None or self._child.poll() is not None:
                self._child = process.start(self._command, stderr=self._log)
                threading.Thread(target=self._listen, args=(self._child,), daemon=True).start()
            self._count += 1
            self._answers[self._count] = answer
            request = {"id": self._count, "argv": command.argv[1:], "cwd": command.cwd, "env": dict(command.env), "log": str(log)}
            try:
                assert self._child.stdin is not None
                self._child.stdin.write(json.dumps(request).encode() + b"\n")
                self._child.stdin.flush()
            except OSError as error:
                raise self._gone(error) from error

    def _listen(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdout is not None
        for line in child.stdout:
            said = json.loads(line)
            self._answers.pop(said["id"]).put(said["code"])
        code = child.wait()
        with self._lock:
            for answer in self._answers.values():
                answer.put(code or -1)
            self._answers.clear()

    def _gone(self, error: Exception) -> OrchestrateError:
        tail = process.tail_of(self._log)
        return OrchestrateError(f"the environment's Python did not start ({error})\n{tail}", "run again with --force", self._log)

    def close(self) -> None:
        """End the interpreter and all of its children."""
        with self._lock:
            if self._child is not None:
                process.stop(self._child)
                self._child = None


def run_alone(command: Command, log: Path, tell: Callable[[str], None]) -> None:
    """Run one script in a process of its own, where there is no fork."""
    seen = time.monotonic()

    def on_line(line: str) -> None:
        nonlocal seen
        if (now := progress_of(line)) and time.monotonic() - seen > 0.2:
            seen = time.monotonic()
            tell(now)

    try:
        process.stream(command, log, on_line)
    except CommandFailed as error:
        raise failed(error) from error
