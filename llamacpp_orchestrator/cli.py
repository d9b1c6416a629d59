"""The door: what is typed becomes keywords for the function that does it, and nothing more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from llamacpp_orchestrator import __version__
from llamacpp_orchestrator import cli_options
from llamacpp_orchestrator.cli_cache import cache
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.job import check_levels
from llamacpp_orchestrator.util.units import size

FILE = click.Path(path_type=Path, readable=False)  # what cannot be read is told where it is read
JOB = click.argument("job", required=False, callback=cli_options.only_job, type=FILE, shell_complete=cli_options.complete_job)
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="orchestrate")
def orchestrate() -> None:
    """Turn Hugging Face models and LoRA adapters into GGUF files with a pinned llama.cpp.

    Start with `orchestrate init`, then `orchestrate run job.yaml`.
    """


@orchestrate.command()
@click.argument(
    "jobs_files",
    metavar="[JOB]...",
    nargs=-1,
    callback=cli_options.only_jobs,
    type=FILE,
    shell_complete=cli_options.complete_job,
)
@click.option(
    "--bundle", type=click.Path(exists=True, path_type=Path), metavar="FILE", help="Take all from a bundle; ask no server."
)
@click.option("--ollama-create", is_flag=True, help="Also run `ollama create` for the models that say `ollama: true`.")
@cli_options.on_cluster
@click.option("--publish", is_flag=True, help="Then send what is made to the hub, as `orchestrate publish` does.")
@cli_options.publishing
@cli_options.shared()
def run(jobs_files: tuple[Path, ...], bundle: Path | None, **flags: Any) -> None:
    """Do the whole job: set up, fetch, convert, quantize, verify.

    Without JOB it is the only job file of this folder, here as in the other commands.
    """
    if (flags["create"] or flags["yes"]) and not flags["publish"]:
        raise click.UsageError("--create and --yes go with --publish.")
    if bundle and len(jobs_files) > 1:
        raise click.UsageError("--bundle goes with one JOB.")
    if bundle and flags["scheduler"]:
        raise click.UsageError("--bundle and --scheduler exclude each other.")
    contexts = [cli_options.load(file, flags, folders=not bundle) for file in jobs_files]
    if bundle:
        from llamacpp_orchestrator.commands import bundle as commands_bundle

        with cli_options.shown(flags):
            contexts = [commands_bundle.opened(bundle, contexts[0])]
        flags["locked"] = True
    cli_options.run(contexts, flags, kept=True)


@orchestrate.command()
@click.argument("model")
@click.option("--lora", "loras", multiple=True, metavar="X", help="An adapter: hub id or folder. May be given several times.")
@click.option(
    "--merge",
    multiple=True,
    metavar="X",
    help="An adapter to merge into the model first: hub id or folder. Several times for several.",
)
@click.option(
    "--outtype",
    "outtypes",
    multiple=True,
    metavar="T",
    shell_complete=cli_options.complete_outtype,
    help="bf16 (default), f16, f32, q8_0, ... or none. Several times for several.",
)
@click.option(
    "--quantize",
    multiple=True,
    metavar="Q",
    shell_complete=cli_options.complete_quantize,
    help="A type of llama-quantize, for example Q4_K_M. May be given several times.",
)
@click.option("--tag", default="", metavar="TAG", help="Of llama.cpp: a build (bNNNN), a release (vX.Y.Z) or latest.")
@click.option(
    "--override", "overrides", multiple=True, metavar="PIN", help="Replace a pin of upstream's, for example torch==2.13.0."
)
@click.option("--output", default="dist", show_default=True, metavar="DIR", help="Where the files go.")
@click.option("--write-job", type=FILE, metavar="FILE", help="Keep it as a job file, which is then what runs.")
@cli_options.shared()
def convert(model: str, write_job: Path | None, **flags: Any) -> None:
    """Convert MODEL (hub id or folder) without a job file."""
    from llamacpp_orchestrator.job import by_option
    from llamacpp_orchestrator.job import loader
    from llamacpp_orchestrator.util.store import write_atomically

    file = (write_job or Path("orchestrate.yaml")).absolute()
    typed = by_option.Typed(model=model, **{name: flags.pop(name) for name in by_option.OF_A_FLAG})
    text = by_option.job_text(typed, file.parent)
    try:
        job = loader.parse(text.encode(errors="surrogateescape"), file)
        loader.check_folders(job, file)
    except JobError as error:
        by_option.tell_by_option(error, file)
        raise
    if write_job:
        cli_options.check_new(write_job, flags["force"])
        write_atomically(file, text)
    cli_options.run([cli_options.context(job, file, flags)], flags, kept=bool(write_job))


@orchestrate.command()
@click.argument("job", required=False, type=FILE, shell_complete=cli_options.complete_job)
@click.option(
    "--upgrade",
    is_flag=False,
    flag_value="all",
    metavar="[WHAT]",
    help="Move pins to what the job means now: llama_cpp, environment, models or the name of one; without WHAT all.",
)
@cli_options.shared("--force", "--jobs", "--memory", "--keep-going")
def lock(job: Path | None, upgrade: str | None, **flags: Any) -> None:
    """Resolve JOB and write its lock file, nothing else."""
    from llamacpp_orchestrator.job import strangers

    if job is None and upgrade and strangers.is_job(Path(upgrade)):
        job, upgrade = Path(upgrade), "all"  # `lock --upgrade JOB`: the word after the option is the job
    job = job or cli_options.only_job()
    from llamacpp_orchestrator import console
    from llamacpp_orchestrator.commands import lock as commands_lock

    context = cli_options.load(job, flags)
    with cli_options.shown(flags) as show:
        written = commands_lock.write_lock(context, cli_options.options(flags, upgrade=upgrade or ""), show)
    console.result(written, [str(written)])


@orchestrate.command()
@JOB
@cli_options.shared("--jobs", "--keep-going")
def plan(job: Path, **flags: Any) -> None:
    """Show every step of JOB, its command, and what it needs.

    Nothing is made, and nothing is written.
    """
    from llamacpp_orchestrator import console
    from llamacpp_orchestrator.commands import plan as commands_plan

    context = cli_options.load(job, flags)
    with cli_options.shown(flags) as show:
        planned = commands_plan.preview(context, cli_options.options(flags), show)
    console.result(planned, commands_plan.lines(planned), flags["as_json"])


@orchestrate.command()
@JOB
@cli_options.shared("--force", "--memory")
def setup(job: Path, **flags: Any) -> None:
    """Get llama.cpp, its programs and the environment ready."""
    from llamacpp_orchestrator.commands import setup as commands_setup

    context = cli_options.load(job, flags)
    with cli_options.shown(flags) as show:
        result = commands_setup.setup(context, cli_options.options(flags), show)
    cli_options.finish(result, flags)


@orchestrate.command()
@JOB
@click.option("--dry-run", is_flag=True, help="Send nothing: list the files, and write the card to look at.")
@cli_options.publishing
@cli_options.shared("--locked", "--offline", "--jobs", "--memory")
def publish(job: Path, dry_run: bool, **flags: Any) -> None:
    """Send what JOB has made to the hub, with a card that proves it.

    Each repository gets one commit: outputs, receipts, the job, its lock and a model card. What is there is not sent again.
    """
    from llamacpp_orchestrator import console
    from llamacpp_orchestrator.commands import publish as commands_publish

    context, options = cli_options.load(job, flags), cli_options.options(flags)
    with cli_options.shown(flags) as show:
        if dry_run:
            previews = commands_publish.preview(context, options)
            console.result(previews, [line for preview in previews for line in preview.lines()], flags["as_json"])
            return
        result = commands_publish.publish_job(context, options, show)
    cli_options.finish(result, flags)


@orchestrate.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--deep", is_flag=True, help="Also hash again what they were made from: converter tree, models, adapters.")
@click.option(
    "--level",
    type=click.Choice(check_levels.LEVELS),
    help="Also compare them with their source, load them, or compare what they say next.",
)
@cli_options.speaking("--verbose", "--no-progress")
def verify(paths: tuple[Path, ...], deep: bool, level: str | None, **flags: Any) -> None:
    """Check outputs, or folders of them, against their receipts."""
    from llamacpp_orchestrator import console
    from llamacpp_orchestrator import results
    from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt

    with cli_options.ending():
        outputs = [output for path in paths for output in pipeline_receipt.outputs(path)]
        found = [(path, *pipeline_receipt.examine(path)) for path in outputs]
        complaints = [(path, wrong) for path, wrong, _ in found]
        if deep or level:
            from llamacpp_orchestrator.commands import reproduce

            here = cli_options.here(flags)
            if level:
                complaints = [(path, wrong or reproduce.check(path, here, level, read)) for path, wrong, read in found]
            if deep:
                complaints = [(path, wrong or reproduce.recheck(path, here)) for path, wrong in complaints]
    checked = [results.Checked(path=str(path), complaints=tuple(wrong)) for path, wrong in complaints]
    console.result(
        checked, [line for check in checked if check.complaints or not flags["quiet"] for line in check.lines()], flags["as_json"]
    )
    if any(wrong.complaints for wrong in checked):
        raise OrchestrateError("not everything is as its receipt says", "make it again: orchestrate run JOB --force")


@orchestrate.command()
@JOB
@click.option("--output", "-o", "file", required=True, type=FILE, metavar="FILE", help="The file to write.")
@click.option("--platform", default="", metavar="NAME", help="linux-x64, windows-x64, macos-arm64, ...; this one by default.")
@cli_options.shared("--jobs", "--memory", "--keep-going")
def bundle(job: Path, file: Path, platform: str, **flags: Any) -> None:
    """Pack all that JOB needs for a machine without a network."""
    from llamacpp_orchestrator import console
    from llamacpp_orchestrator.commands import bundle as commands_bundle

    cli_options.check_new(file, flags["force"])
    context = cli_options.load(job, flags)
    with cli_options.shown(flags) as show:
        packed = commands_bundle.pack(context, cli_options.options(flags), platform, file.absolute(), show)
    count = packed.stat().st_size
    console.result({"path": str(packed), "size": count}, [f"{size(count):>9}  {packed}"], flags["as_json"])


@orchestrate.command()
@JOB
@click.option("--output", "-o", "file", type=FILE, metavar="FILE", help="The file to write; JOB-report.html by default.")
@cli_options.shared("--locked", "--offline", "--jobs", "--memory", "--keep-going", "--verbose", "--no-progress")
def report(job: Path, file: Path | None, **flags: Any) -> None:
    """Write a page of what JOB has made, how, and at what cost.

    Nothing is made or asked for it: it says what is on this machine.
    """
    from llamacpp_orchestrator import console
    from llamacpp_orchestrator.commands import report as commands_report

    file = file or commands_report.default(job)
    cli_options.check_new(file, flags["force"] or commands_report.is_ours(file))
    with cli_options.ending():
        written = commands_report.write(cli_options.load(job, flags, folders=False), file.absolute())
    count = written.stat().st_size
    console.result({"path": str(written), "size": count}, [f"{size(count):>9}  {written}"], flags["as_json"])


@orchestrate.command(name="reproduce", short_help="Make an output again, aside, and say whether it is identical.")
@click.argument("receipt", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--job", type=click.Path(exists=True, path_type=Path), metavar="FILE", help="The job, where the receipt does not lead to it."
)
@click.option("--offline", is_flag=True, help="Ask no server; say what is missing on this machine.")
@cli_options.speaking()
def reproduce_(receipt: Path, job: Path | None, offline: bool, **flags: Any) -> None:
    """Make the output of RECEIPT again, aside, and say whether it is identical or where it differs."""
    from llamacpp_orchestrator import console
    from llamacpp_orchestrator.commands import reproduce
    from llamacpp_orchestrator.context import Options

    here = cli_options.here(flags | {"offline": offline})
    with cli_options.shown(flags) as show:
        files = reproduce.reproduce(receipt, here, job, Options(), show)
    console.result(files, [line for output in files for line in output.lines()], flags["as_json"])
    if any(output.made != output.recorded for output in files):
        raise OrchestrateError("the output cannot be reproduced", "was it changed by hand, or made with another environment?")


@orchestrate.command()
@click.argument("job", required=False, type=FILE)
@cli_options.speaking("--verbose", "--no-progress")
def doctor(job: Path | None, **flags: Any) -> None:
    """Look at this machine, and at all that JOB needs here."""
    from llamacpp_orchestrator import console
    from llamacpp_orchestrator.commands import doctor as commands_doctor

    with cli_options.ending():
        context = cli_options.load(job, flags) if job else None
        lines = commands_doctor.examine(context, context.settings if context else cli_options.here(flags))
    console.result(lines, [line.line() for line in lines if not (line.within or (flags["quiet"] and line.ok))], flags["as_json"])
    if job and (lacking := commands_doctor.lacking(lines)):
        raise OrchestrateError(f"{job} cannot be run here as it is: {', '.join(lacking)}", "see the lines that say `problem`")


@orchestrate.command(
    name="exec",
    short_help="Run a program or script of the pinned tag.",
    context_settings={**CONTEXT, "ignore_unknown_options": True},
)
@click.argument("job", type=FILE, shell_complete=cli_options.complete_job)
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(job: Path, argv: tuple[str, ...]) -> None:
    """Run a program or script of the pinned tag: orchestrate exec JOB -- llama-cli --version."""
    from llamacpp_orchestrator.commands import exec as commands_exec
    from llamacpp_orchestrator.system import process

    with cli_options.shown({}) as show:
        command = commands_exec.exec_command(cli_options.load(job, {}), argv, show)
    raise SystemExit(process.attached(command))


@orchestrate.command()
@click.argument("file", default="job.yaml", type=FILE)
def init(file: Path) -> None:
    """Write a commented job file to start from."""
    from llamacpp_orchestrator.job import loader
    from llamacpp_orchestrator.system.command import ours
    from llamacpp_orchestrator.util.store import write_atomically

    cli_options.check_new(file, False, f"choose another name: {ours('init', file.with_stem(file.stem + '-2'))}")
    write_atomically(file, loader.STARTER)
    click.echo(f"wrote {file}; next: {ours('run', file)}", err=True)


@orchestrate.command()
def schema() -> None:
    """Print the JSON Schema of a job file, for editors."""
    from llamacpp_orchestrator import console
    from llamacpp_orchestrator.job import loader

    console.result(loader.schema(), (), as_json=True)


orchestrate.add_command(cache)
