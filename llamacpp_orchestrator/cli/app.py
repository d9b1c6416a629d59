"""The door: what is typed becomes keywords for the function that does it, and nothing more."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any

import click

from llamacpp_orchestrator import __version__
from llamacpp_orchestrator.cli import arguments
from llamacpp_orchestrator.cli import finished
from llamacpp_orchestrator.cli import options as cli_options
from llamacpp_orchestrator.cli import running
from llamacpp_orchestrator.cli.cache import cache
from llamacpp_orchestrator.cli.work import work
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.util.units import size

if TYPE_CHECKING:
    from pathlib import Path

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="orchestrate")
def orchestrate() -> None:
    """Turn Hugging Face models and LoRA adapters into GGUF files with a pinned llama.cpp.

    Start with `orchestrate init`, then `orchestrate run job.yaml`.
    """


@orchestrate.command()
@click.argument("jobs_files", metavar="[JOB]...", nargs=-1, type=arguments.WORD, shell_complete=arguments.complete_job)
@click.option("--bundle", type=arguments.THERE, metavar="FILE", help="Take all from a bundle; ask no server.")
@click.option("--ollama-create", is_flag=True, help="Also run `ollama create` for the models that say `ollama: true`.")
@cli_options.on_cluster
@click.option("--publish", is_flag=True, help="Then send what is made to the hub, as `orchestrate publish` does.")
@cli_options.publishing
@cli_options.shared()
def run(jobs_files: tuple[str, ...], bundle: Path | None, **flags: Any) -> None:
    """Do the whole job: set up, fetch, convert, quantize, verify.

    Without JOB it is the only job file of this folder, here as in the other commands.
    """
    if (flags["create"] or flags["yes"]) and not flags["publish"]:
        raise click.UsageError("--create and --yes go with --publish.")
    if bundle and (len(jobs_files) > 1 or flags["scheduler"]):
        raise click.UsageError("--bundle goes with one JOB, and not with --scheduler.")
    asked = None if bundle else running.question(jobs_files, flags)
    if asked and running.repeat(asked, flags):
        return
    contexts = [cli_options.load(file, flags, folders=not bundle) for file in arguments.jobs(jobs_files)]
    if bundle:
        from llamacpp_orchestrator.commands import bundle as commands_bundle

        with running.shown(flags):
            contexts = [commands_bundle.opened(bundle, contexts[0])]
        flags["locked"] = True
    running.run(contexts, flags, True, asked)


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
    shell_complete=arguments.complete_outtype,
    help="bf16 (default), f16, f32, q8_0, ... or none. Several times for several.",
)
@click.option(
    "--quantize",
    multiple=True,
    metavar="Q",
    shell_complete=arguments.complete_quantize,
    help="A type of llama-quantize, for example Q4_K_M. May be given several times.",
)
@click.option("--tag", default="", metavar="TAG", help="Of llama.cpp: a build (bNNNN), a release (vX.Y.Z) or latest.")
@click.option(
    "--override", "overrides", multiple=True, metavar="PIN", help="Replace a pin of upstream's, for example torch==2.13.0."
)
@click.option("--output", default="dist", show_default=True, metavar="DIR", help="Where the files go.")
@click.option("--write-job", type=arguments.FILE, metavar="FILE", help="Keep it as a job file, which is then what runs.")
@cli_options.shared()
def convert(model: str, write_job: Path | None, **flags: Any) -> None:
    """Convert MODEL (hub id or folder) without a job file."""
    from pathlib import Path

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
        arguments.check_new(write_job, flags["force"])
        write_atomically(file, text)
    running.run([cli_options.context(job, file, flags)], flags, bool(write_job))


@orchestrate.command()
@click.argument("job", required=False, type=arguments.FILE, shell_complete=arguments.complete_job)
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
    from pathlib import Path

    from llamacpp_orchestrator.job import strangers

    if job is None and upgrade and strangers.is_job(Path(upgrade)):
        job, upgrade = Path(upgrade), "all"  # `lock --upgrade JOB`: the word after the option is the job
    job = job or arguments.only_job()
    from llamacpp_orchestrator import console
    from llamacpp_orchestrator.commands import lock as commands_lock

    context = cli_options.load(job, flags)
    with running.shown(flags) as show:
        written = commands_lock.write_lock(context, cli_options.options(flags, upgrade=upgrade or ""), show)
    console.result(written, [str(written)])


@orchestrate.command()
@arguments.JOB
@cli_options.shared("--jobs", "--keep-going")
def plan(job: Path, **flags: Any) -> None:
    """Show every step of JOB, its command, and what it needs.

    Nothing is made, and nothing is written.
    """
    from llamacpp_orchestrator import console
    from llamacpp_orchestrator.commands import plan as commands_plan

    context = cli_options.load(job, flags)
    with running.shown(flags) as show:
        planned = commands_plan.preview(context, cli_options.options(flags), show)
    console.result(planned, commands_plan.lines(planned), flags["as_json"])


@orchestrate.command()
@arguments.JOB
@cli_options.shared("--force", "--memory")
def setup(job: Path, **flags: Any) -> None:
    """Get llama.cpp, its programs and the environment ready."""
    from llamacpp_orchestrator.commands import setup as commands_setup

    context = cli_options.load(job, flags)
    with running.shown(flags) as show:
        result = commands_setup.setup(context, cli_options.options(flags), show)
    running.finish(result, flags)


@orchestrate.command()
@arguments.JOB
@click.option("--output", "-o", "file", required=True, type=arguments.FILE, metavar="FILE", help="The file to write.")
@click.option("--platform", default="", metavar="NAME", help="linux-x64, windows-x64, macos-arm64, ...; this one by default.")
@cli_options.shared("--jobs", "--memory", "--keep-going")
def bundle(job: Path, file: Path, platform: str, **flags: Any) -> None:
    """Pack all that JOB needs for a machine without a network."""
    from llamacpp_orchestrator import console
    from llamacpp_orchestrator.commands import bundle as commands_bundle

    arguments.check_new(file, flags["force"])
    context = cli_options.load(job, flags)
    with running.shown(flags) as show:
        packed = commands_bundle.pack(context, cli_options.options(flags), platform, file.absolute(), show)
    count = packed.stat().st_size
    console.result({"path": str(packed), "size": count}, [f"{size(count):>9}  {packed}"], flags["as_json"])


@orchestrate.command()
@click.argument("job", required=False, type=arguments.FILE)
@cli_options.speaking("--verbose", "--no-progress")
def doctor(job: Path | None, **flags: Any) -> None:
    """Look at this machine, and at all that JOB needs here."""
    from llamacpp_orchestrator import console
    from llamacpp_orchestrator.commands import doctor as commands_doctor

    with running.ending():
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
@click.argument("job", type=arguments.FILE, shell_complete=arguments.complete_job)
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(job: Path, argv: tuple[str, ...]) -> None:
    """Run a program or script of the pinned tag: orchestrate exec JOB -- llama-cli --version."""
    from llamacpp_orchestrator.commands import exec as commands_exec
    from llamacpp_orchestrator.system import process

    with running.shown({}) as show:
        command = commands_exec.exec_command(cli_options.load(job, {}), argv, show)
    raise SystemExit(process.attached(command))


@orchestrate.command()
@click.argument("file", default="job.yaml", type=arguments.FILE)
def init(file: Path) -> None:
    """Write a commented job file to start from."""
    from llamacpp_orchestrator.job import loader
    from llamacpp_orchestrator.system.command import ours
    from llamacpp_orchestrator.util.store import write_atomically

    arguments.check_new(file, False, f"choose another name: {ours('init', file.with_stem(file.stem + '-2'))}")
    write_atomically(file, loader.STARTER)
    click.echo(f"wrote {file}; next: {ours('run', file)}", err=True)


@orchestrate.command()
def schema() -> None:
    """Print the JSON Schema of a job file, for editors."""
    from llamacpp_orchestrator import console
    from llamacpp_orchestrator.job import loader

    console.result(loader.schema(), (), as_json=True)


for command in (cache, finished.verify, finished.report, finished.reproduce_, finished.publish, work):
    orchestrate.add_command(command)
