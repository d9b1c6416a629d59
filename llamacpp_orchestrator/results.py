"""What commands answer: records of outputs, steps, measurements and checks, as text and as JSON."""

from __future__ import annotations

import os
from typing import Any

import msgspec

from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.util.units import size


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """One file that a job has made or found up to date."""

    path: str
    kind: str
    type: str
    size: int
    sha256: str
    status: str
    source: str


class ModelfileResult(msgspec.Struct, frozen=True, kw_only=True):
    """One Modelfile, and the two commands that bring it into Ollama and run it there."""

    name: str
    path: str
    create: str
    run: str

    def lines(self, created: bool) -> list[str]:
        """The commands that are left, as text; the first is done where the model was `created`."""
        return [f"{'ollama':<8}{command}" for command in ([] if created else [self.create]) + [self.run]]


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one repository of the hub: the commit in which all lies now, and the paths that were sent this time."""

    repo: str
    url: str
    revision: str
    commit: str
    status: str
    files: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The same as text."""
        branch = "" if self.revision == "main" else f"  branch {self.revision}"
        status = f"{len(self.files)} files sent" if self.files else "current"
        return [f"{'hub':<8}{self.url}{branch}  commit {self.commit[:12]}, {status}"]


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """What one file has kept of the unquantized model: perplexity, KL divergence, how often (%) both guess the same next token.

    Those of the unquantized file itself have no divergence; `key` tells what decides the numbers, sizes are bytes.
    """

    file: str
    type: str
    size: int
    bits: float
    ppl: float
    ppl_error: float | None = None
    kld: float | None = None
    kld_error: float | None = None
    kld_median: float | None = None
    kld_max: float | None = None
    same_top: float | None = None
    same_top_error: float | None = None
    key: str = ""


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """The measurements of one model's files, and where the report and its plot lie, "" where none is drawn."""

    model: str
    report: str
    plot: str
    unquantized: Measure
    types: tuple[Measure, ...]

    def lines(self) -> list[str]:
        """The same as a table."""
        rows = (self.unquantized, *self.types)
        return [f"{'quality':<8}{line}" for line in (*map(_measure, rows), *([self.plot] if self.types and self.plot else []))]


def _measure(row: Measure) -> str:
    same = f"{row.same_top:6.2f} % same" if row.same_top is not None else ""
    divergence = f"KLD {row.kld:.6f}" if row.kld is not None else ""
    return f"{size(row.size):>9}  {row.bits:5.2f} bits  PPL {row.ppl:10.4f}  {divergence:<12}  {same:<13}  {row.file}"


class PlannedStep(msgspec.Struct, frozen=True, kw_only=True):
    """One step as it would be done: its command if it has one, the bytes it downloads, or that it is up to date.

    `memory` is about how many bytes it takes at its peak; 0 for little, or while the headers that tell are not here.
    """

    name: str
    status: str
    detail: str = ""
    command: str = ""
    download: int = 0
    memory: int = 0


class StepResult(msgspec.Struct, frozen=True, kw_only=True):
    """How one step ended."""

    name: str
    status: str
    seconds: float
    log: str | None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a run came to; `errors` are those of the failed steps, the first one first."""

    status: str
    seconds: float
    steps: tuple[StepResult, ...]
    outputs: tuple[Made, ...]
    ollama: tuple[ModelfileResult, ...] = ()
    quality: tuple[Quality, ...] = ()
    publish: tuple[Published, ...] = ()
    errors: tuple[OrchestrateError, ...] = ()

    def document(self) -> dict[str, Any]:
        """The result as `--json` prints it."""
        names = ("status", "seconds", "steps", "outputs", "quality", "ollama", "publish")
        plain = {name: msgspec.to_builtins(getattr(self, name)) for name in names}
        return plain | ({"error": self.errors[0].lines()} if self.errors else {})

    def lines(self, created: bool = False) -> list[str]:
        """The files as text, one a line, and what is left to do; with `created` Ollama has its models already."""
        files = [f"{made.status:<8}{size(made.size):>9}  {made.sha256[:12]}  {_near(made.path)}" for made in self.outputs]
        files += [line for report in self.quality for line in report.lines()]
        files += [line for modelfile in self.ollama for line in modelfile.lines(created)]
        return files + [line for repository in self.publish for line in repository.lines()]


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """One output and what is wrong with it."""

    path: str
    complaints: tuple[str, ...]

    def lines(self) -> list[str]:
        """The same as text."""
        return [f"{'failed' if self.complaints else 'ok':<8}{self.path}", *(f"        {line}" for line in self.complaints)]


def _near(path: str) -> str:
    """A path as one would type it here."""
    here = os.getcwd() + os.sep  # noqa: PTH109 - without pathlib, which else a run with nothing to do does not load
    return path.removeprefix(here)
