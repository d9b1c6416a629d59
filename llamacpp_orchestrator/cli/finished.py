"""The commands about what is made: whether it is still what it was, a page of it, making it again, sending it to the hub."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any

import click

from llamacpp_orchestrator.cli import arguments
from llamacpp_orchestrator.cli import options as cli_options
from llamacpp_orchestrator.cli import running
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.job import check_levels
from llamacpp_orchestrator.util.units import size

if TYPE_CHECKING:
    from pathlib import Path

    from llamacpp_orchestrator.results import Checked


@click.command()
@arguments.JOB
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
    with running.shown(flags) as show:
        if dry_run:
            previews = commands_publish.preview(context, options)
            console.result(previews, [line for preview in previews for line in preview.lines()], flags["as_json"])
            return
        result = commands_publish.publish_job(context, options, show)
    running.finish(result, flags)


@click.command()
@click.argument("paths", nargs=-1, required=True, callback=arguments.places)
@click.option("--deep", is_flag=True, help="Also hash again what they were made from: converter tree, models, adapters.")
@click.option(
    "--level",
    type=click.Choice(check_levels.LEVELS),
    help="Also compare them with their source, load them, or compare what they say next.",
)
@cli_options.speaking("--verbose", "--no-progress")
def verify(paths: tuple[str, ...], deep: bool, level: str | None, **flags: Any) -> None:
    """Check outputs against their receipts.

    PATHS are files, folders, addresses such as s3://bucket/prefix, or jobs whose output is one.
    """
    from llamacpp_orchestrator import console
    from llamacpp_orchestrator import results
    from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt

    with running.ending():
        there, files = _at_addresses(paths, bool(deep or level))
        outputs = [output for path in files for output in pipeline_receipt.outputs(path)]
        examined = [(path, *pipeline_receipt.examine(path)) for path in outputs]
        complaints = [(path, wrong) for path, wrong, _ in examined]
        if deep or level:
            from llamacpp_orchestrator.commands import reproduce

            here = cli_options.here(flags)
            if level:
                complaints = [(path, wrong or reproduce.check(path, here, level, read)) for path, wrong, read in examined]
            if deep:
                complaints = [(path, wrong or reproduce.recheck(path, here)) for path, wrong in complaints]
    checked = [*there, *(results.Checked(path=str(path), complaints=tuple(wrong)) for path, wrong in complaints)]
    console.result(
        checked, [line for check in checked if check.complaints or not flags["quiet"] for line in check.lines()], flags["as_json"]
    )
    if any(wrong.complaints for wrong in checked):
        raise OrchestrateError("not everything is as its receipt says", "make it again: orchestrate run JOB --force")


@click.command()
@arguments.JOB
@click.option(
    "--output", "-o", "file", type=arguments.FILE, metavar="FILE", help="The file to write; JOB-report.html by default."
)
@cli_options.shared("--locked", "--offline", "--jobs", "--memory", "--keep-going", "--verbose", "--no-progress")
def report(job: Path, file: Path | None, **flags: Any) -> None:
    """Write a page of what JOB has made, how, and at what cost.

    Nothing is made or asked for it: it says what is on this machine.
    """
    from llamacpp_orchestrator import console
    from llamacpp_orchestrator.commands import report as commands_report

    file = file or commands_report.default(job)
    arguments.check_new(file, flags["force"] or commands_report.is_ours(file))
    with running.ending():
        written = commands_report.write(cli_options.load(job, flags, folders=False), file.absolute())
    count = written.stat().st_size
    console.result({"path": str(written), "size": count}, [f"{size(count):>9}  {written}"], flags["as_json"])


@click.command(name="reproduce", short_help="Make an output again, aside, and say whether it is identical.")
@click.argument("receipt", type=arguments.THERE)
@click.option("--job", type=arguments.THERE, metavar="FILE", help="The job, where the receipt does not lead to it.")
@click.option("--offline", is_flag=True, help="Ask no server; say what is missing on this machine.")
@cli_options.speaking()
def reproduce_(receipt: Path, job: Path | None, offline: bool, **flags: Any) -> None:
    """Make the output of RECEIPT again, aside, and say whether it is identical or where it differs."""
    from llamacpp_orchestrator import console
    from llamacpp_orchestrator.commands import reproduce
    from llamacpp_orchestrator.context import Options

    here = cli_options.here(flags | {"offline": offline})
    with running.shown(flags) as show:
        files = reproduce.reproduce(receipt, here, job, Options(), show)
    console.result(files, [line for output in files for line in output.lines()], flags["as_json"])
    if any(output.made != output.recorded for output in files):
        raise OrchestrateError("the output cannot be reproduced", "was it changed by hand, or made with another environment?")


def _at_addresses(words: tuple[str, ...], closer: bool) -> tuple[list[Checked], list[Path]]:
    """What lies at those of some words that are addresses, or jobs with one, checked; and the other words as paths."""
    from pathlib import Path

    from llamacpp_orchestrator.job import loader
    from llamacpp_orchestrator.storage import address

    checked: list[Checked] = []
    files: list[Path] = []
    for word in words:
        is_job = Path(word).suffix in {".yaml", ".yml"} and not Path(word).stem.endswith(".lock")
        output = loader.load(Path(word), folders=False).output if is_job else word
        if not address.is_address(output):
            files.append(Path(word))
            continue
        if closer:
            raise click.UsageError("--deep and --level are for files on this machine; at an address it is sizes and bytes.")
        from llamacpp_orchestrator.remote_outputs import readback

        checked += readback.check(output)
    return checked, files
