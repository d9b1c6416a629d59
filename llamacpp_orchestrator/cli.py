"""The door: arguments become keywords, and the one `except` turns an error into its words and its exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any

import click

from llamacpp_orchestrator import __version__
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import OrchestrateError

if TYPE_CHECKING:
    from llamacpp_orchestrator.driver import Options
    from llamacpp_orchestrator.pins import Work
    from llamacpp_orchestrator.report import Result
    from llamacpp_orchestrator.report import Voice

JOB = click.argument("job", type=click.Path(path_type=Path))
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


def shared(command: Callable[..., None]) -> Callable[..., None]:
    """The options that every command which works on a job has."""
    options = (
        click.option("--locked", is_flag=True, help="The lock must exist and fit the job; nothing is resolved anew."),
        click.option("--offline", is_flag=True, help="Ask no server; say what is missing on this machine."),
        click.option("--force", is_flag=True, help="Make everything anew, and overwrite files that are not ours."),
        click.option("--jobs", type=click.IntRange(1), metavar="N", help="At most N conversions at a time."),
        click.option("--keep-going", is_flag=True, help="After a failure, go on with what does not depend on it."),
        *SPEAKING,
    )
    for option in reversed(options):
        command = option(command)
    return command


SPEAKING = (
    click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout."),
    click.option("--quiet", "-q", is_flag=True, help="Say only what fails."),
    click.option("--verbose", "-v", is_flag=True, help="Also say how each step proceeds."),
    click.option("--no-progress", is_flag=True, help="Plain lines, no redrawing."),
)


def speaking(command: Callable[..., None]) -> Callable[..., None]:
    """The options about output alone."""
    for option in reversed(SPEAKING):
        command = option(command)
    return command


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="orchestrate")
def orchestrate() -> None:
    """Turn Hugging Face models and LoRA adapters into GGUF files with a pinned llama.cpp.

    Start with `orchestrate init`, then `orchestrate run job.yaml`.
    """


@orchestrate.command()
@click.argument("jobs_files", metavar="JOB...", nargs=-1, required=True, type=click.Path(path_type=Path))
@shared
def run(jobs_files: tuple[Path, ...], **flags: Any) -> None:
    """Do the whole job: set up, fetch, convert, quantize, verify."""
    _run([_load(file, flags) for file in jobs_files], flags, kept=True)


@orchestrate.command()
@click.argument("model")
@click.option("--lora", "loras", multiple=True, metavar="X", help="An adapter: hub id or folder. May be given several times.")
@click.option(
    "--outtype",
    "outtypes",
    multiple=True,
    metavar="T",
    help="bf16 (default), f16, f32, q8_0, ... or none. Several times for several.",
)
@click.option(
    "--quantize", multiple=True, metavar="Q", help="A type of llama-quantize, for example Q4_K_M. May be given several times."
)
@click.option("--tag", default="", metavar="bN", help="The llama.cpp release tag.")
@click.option(
    "--override", "overrides", multiple=True, metavar="PIN", help="Replace a pin of upstream's, for example torch==2.13.0."
)
@click.option("--output", default="dist", show_default=True, metavar="DIR", help="Where the files go.")
@click.option(
    "--write-job", type=click.Path(path_type=Path), metavar="FILE", help="Keep it as a job file, which is then what runs."
)
@shared
def convert(
    model: str,
    loras: tuple[str, ...],
    outtypes: tuple[str, ...],
    quantize: tuple[str, ...],
    tag: str,
    overrides: tuple[str, ...],
    output: str,
    write_job: Path | None,
    **flags: Any,
) -> None:
    """Convert MODEL (hub id or folder) without a job file."""
    asked: dict[str, Any]
    from llamacpp_orchestrator import spec
    from llamacpp_orchestrator.store import write_atomically

    file = (write_job or Path("orchestrate.yaml")).absolute()
    asked = {"model": model, "loras": loras, "outtypes": outtypes, "quantize": quantize, "tag": tag, "overrides": overrides}
    text = spec.job_text(**asked, output=output, folder=file.parent)
    job = spec.parse(text.encode(), file)
    spec.check_folders(job, file)
    if write_job:
        if file.exists() and not flags["force"]:
            raise JobError(f"{write_job} exists already", "choose another name, or use --force")
        write_atomically(file, text)
    _run([_work(job, file, flags)], flags, kept=bool(write_job))


@orchestrate.command()
@click.argument("job", required=False, type=click.Path(path_type=Path))
@click.option(
    "--upgrade",
    is_flag=False,
    flag_value="all",
    metavar="[WHAT]",
    help="Move pins to what the job means now: llama_cpp, environment, models or the name of one; without WHAT all.",
)
@shared
def lock(job: Path | None, upgrade: str | None, **flags: Any) -> None:
    """Resolve JOB and write its lock file, nothing else."""
    if job is None and upgrade not in (None, "all"):
        job, upgrade = Path(str(upgrade)), "all"  # `lock --upgrade JOB`: the word after the option is the job
    if job is None:
        raise click.UsageError("Missing argument 'JOB'.")
    import msgspec

    from llamacpp_orchestrator import driver
    from llamacpp_orchestrator import lock as locks
    from llamacpp_orchestrator import process
    from llamacpp_orchestrator import report

    work, manner = _load(job, flags), _voice(flags)
    options = msgspec.structs.replace(_options(flags, upgrade=upgrade or ""), downloads=False)
    with process.stoppable(), report.reporting(manner) as show:
        found, _, errors = driver.settle(work, options, show)
    _raise_first(errors, manner)
    if found:
        report.result(str(locks.path_for(work.file)))


@orchestrate.command()
@JOB
@shared
def plan(job: Path, **flags: Any) -> None:
    """Show every step of JOB, its exact command, and what it needs; make nothing."""
    from llamacpp_orchestrator import driver
    from llamacpp_orchestrator import plan as planning
    from llamacpp_orchestrator import process
    from llamacpp_orchestrator import report

    work, manner = _load(job, flags), _voice(flags)
    with process.stoppable(), report.reporting(manner) as show:
        found, errors = driver.preview(work, _options(flags), show)
    _raise_first(errors, manner)
    if found and flags["as_json"]:
        report.result_json(found)
    elif found:
        report.result("\n".join(planning.lines(found)))


@orchestrate.command()
@JOB
@shared
def setup(job: Path, **flags: Any) -> None:
    """Get the converter tree, the release binaries and the environment ready."""
    from llamacpp_orchestrator import driver
    from llamacpp_orchestrator import process
    from llamacpp_orchestrator import report

    work, manner = _load(job, flags), _voice(flags)
    with process.stoppable(), report.reporting(manner) as show:
        result = driver.setup(work, _options(flags), show)
    _finish(result, flags, manner)


@orchestrate.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--deep", is_flag=True, help="Also hash again what they were made from: converter tree, models, adapters.")
@speaking
def verify(paths: tuple[Path, ...], deep: bool, **flags: Any) -> None:
    """Check outputs (files, or folders of them) against their receipts."""
    from llamacpp_orchestrator import artifact
    from llamacpp_orchestrator import report

    outputs = [output for path in paths for output in artifact.outputs(path)]
    complaints = [(path, artifact.recheck(path)) for path in outputs]
    if deep:
        from llamacpp_orchestrator import reproduce
        from llamacpp_orchestrator import settings

        here = settings.load(os.environ)
        complaints = [(path, found or reproduce.recheck(path, here)) for path, found in complaints]
    checked = [report.Checked(path=str(path), complaints=tuple(found)) for path, found in complaints]
    if flags["as_json"]:
        report.result_json(checked)
    else:
        for found in checked:
            report.result(
                f"{'ok' if not found.complaints else 'failed':<8}{found.path}"
                + "".join(f"\n        {line}" for line in found.complaints)
            )
    if any(found.complaints for found in checked):
        raise OrchestrateError("not everything is as its receipt says", "make it again: orchestrate run JOB --force")


@orchestrate.command(name="reproduce")
@click.argument("receipt", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--job", type=click.Path(exists=True, path_type=Path), metavar="FILE", help="The job, where the receipt does not lead to it."
)
@click.option("--offline", is_flag=True, help="Ask no server; say what is missing on this machine.")
@speaking
def reproduce_(receipt: Path, job: Path | None, offline: bool, **flags: Any) -> None:
    """Make the output of RECEIPT again, aside, and say whether it is identical or where it differs."""
    import msgspec

    from llamacpp_orchestrator import process
    from llamacpp_orchestrator import report
    from llamacpp_orchestrator import reproduce
    from llamacpp_orchestrator import settings
    from llamacpp_orchestrator.driver import Options

    here = msgspec.structs.replace(settings.load(os.environ), offline=offline)
    with process.stoppable(), report.reporting(_voice(flags)) as show:
        found = reproduce.reproduce(receipt, here, job, Options(), show)
    if flags["as_json"]:
        report.result_json(found)
    for each in () if flags["as_json"] else found:
        report.result(f"{'identical' if each.made == each.recorded else 'differs':<11}{each.path}")
        for line in each.differences:
            report.result(f"           {line}")
    if any(each.made != each.recorded for each in found):
        raise OrchestrateError("the output cannot be reproduced", "was it changed by hand, or made with another environment?")


@orchestrate.command()
@click.argument("job", required=False, type=click.Path(path_type=Path))
@speaking
def doctor(job: Path | None, **flags: Any) -> None:
    """Look at this machine: system, GPU, tools, disk, and the servers a job needs."""
    from llamacpp_orchestrator import doctor as examining
    from llamacpp_orchestrator import report
    from llamacpp_orchestrator import settings

    found = examining.examine(_load(job, flags) if job else None, settings.load(os.environ))
    if flags["as_json"]:
        report.result_json(found)
    else:
        report.result("\n".join(f"{'ok' if line.ok else 'problem':<9}{line.name:<14}{line.said}" for line in found))


@orchestrate.command(name="exec", context_settings={**CONTEXT, "ignore_unknown_options": True})
@JOB
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(job: Path, argv: tuple[str, ...]) -> None:
    """Run a program or script of the pinned tag: orchestrate exec JOB -- llama-cli --version."""
    from llamacpp_orchestrator import driver
    from llamacpp_orchestrator import process
    from llamacpp_orchestrator import report

    manner = _voice({})
    with process.stoppable(), report.reporting(manner) as show:
        command, errors = driver.exec_command(_load(job, {}), argv, show)
    _raise_first(errors, manner)
    if command:
        raise SystemExit(process.attached(command))


@orchestrate.command()
@click.argument("file", default="job.yaml", type=click.Path(path_type=Path))
def init(file: Path) -> None:
    """Write a commented job file to start from."""
    from llamacpp_orchestrator import spec
    from llamacpp_orchestrator.store import write_atomically

    if file.exists():
        raise JobError(f"{file} exists already", f"choose another name: orchestrate init {file.with_stem(file.stem + '-2')}")
    if not file.absolute().parent.is_dir():
        raise JobError(f"{file.parent} is not a folder", "make it first")
    write_atomically(file, spec.STARTER)
    click.echo(f"wrote {file}; next: orchestrate run {file}", err=True)


@orchestrate.command()
def schema() -> None:
    """Print the JSON Schema of a job file, for editors."""
    from llamacpp_orchestrator import report
    from llamacpp_orchestrator import spec

    report.result_json(spec.schema())


@orchestrate.group()
def cache() -> None:
    """Look at the cache, or make room in it."""


@cache.command(name="dir")
def cache_dir() -> None:
    """Print where the cache is."""
    click.echo(_store_root())


@cache.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def cache_list(as_json: bool) -> None:
    """List what is in the cache, with sizes."""
    from llamacpp_orchestrator import report
    from llamacpp_orchestrator import store

    found = store.entries(_store_root())
    if as_json:
        report.result_json([{"kind": kind, "key": key, "bytes": count, "complete": whole} for kind, key, count, whole in found])
        return
    for kind, key, count, whole in found:
        report.result(f"{kind:<14}{report.size(count):>10}  {key}{'' if whole else '  (incomplete)'}")


@cache.command(name="prune")
@click.option(
    "--kind", "kinds", multiple=True, help="Only entries of this kind: source, binaries, environments, views, downloads, logs."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
def cache_prune(kinds: tuple[str, ...], yes: bool) -> None:
    """Remove cached entries; the next run makes what it needs again. Models are in the Hugging Face cache and stay."""
    from llamacpp_orchestrator import report
    from llamacpp_orchestrator import store

    root = _store_root()
    chosen = kinds or store.PRUNED
    if unknown := [kind for kind in chosen if kind not in store.PRUNED]:
        raise JobError(f"no such kind: {unknown[0]}", f"it is one of {', '.join(store.PRUNED)}")
    if not yes and sys.stdin.isatty():
        click.confirm(f"remove {', '.join(chosen)} from {root}?", abort=True, err=True)
    report.result(f"{report.size(store.prune(root, chosen))} freed")


def _store_root() -> Path:
    from llamacpp_orchestrator import settings

    return settings.load(os.environ).cache


def _load(file: Path, flags: dict[str, Any]) -> Work:
    from llamacpp_orchestrator import spec

    return _work(spec.load(file), file.absolute(), flags)


def _work(job: Any, file: Path, flags: dict[str, Any]) -> Work:
    import msgspec

    from llamacpp_orchestrator import settings
    from llamacpp_orchestrator.pins import Work
    from llamacpp_orchestrator.store import Store

    found = msgspec.structs.replace(settings.load(os.environ), offline=flags.get("offline", False))
    return Work(job=job, file=file, settings=found, store=Store(found.cache))


def _options(flags: dict[str, Any], kept: bool = True, upgrade: str = "") -> Options:
    from llamacpp_orchestrator.driver import Options

    chosen = {name: flags[name] for name in ("locked", "force", "keep_going")}
    return Options(**chosen, jobs=flags["jobs"] or 0, read_lock=kept, write_lock=kept, upgrade=upgrade)


def _voice(flags: dict[str, Any]) -> Voice:
    from llamacpp_orchestrator import report

    quiet, verbose = flags.get("quiet", False), flags.get("verbose", False)
    return report.voice(sys.stderr, os.environ, quiet=quiet, verbose=verbose, progress=not flags.get("no_progress", False))


def _run(works: list[Work], flags: dict[str, Any], kept: bool) -> None:
    from llamacpp_orchestrator import driver
    from llamacpp_orchestrator import process
    from llamacpp_orchestrator import report

    manner = _voice(flags)
    try:
        with process.stoppable(), report.reporting(manner) as show:
            result = driver.run_all(works, _options(flags, kept), show)
    except OrchestrateError as error:
        if flags["as_json"]:
            report.result_json({"status": "failed", "error": error.lines(), "seconds": 0.0, "steps": [], "outputs": []})
        raise
    _finish(result, flags, manner)


def _finish(result: Result, flags: dict[str, Any], manner: Voice) -> None:
    from llamacpp_orchestrator import report

    if flags["as_json"]:
        report.result_json(result.document())
    else:
        for made in result.outputs:
            report.result(f"{made.status:<8}{report.size(made.size):>9}  {made.sha256[:12]}  {made.path}")
    _raise_first(result.errors, manner)


def _raise_first(errors: Sequence[OrchestrateError], manner: Voice) -> None:
    from llamacpp_orchestrator import report

    if errors:
        *others, last = reversed(errors)
        for error in others:
            report.complain(error, manner)
        raise last
