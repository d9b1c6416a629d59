"""The commands about the cache."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from llamacpp_orchestrator.cli import arguments
from llamacpp_orchestrator.cli import options as cli_options
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.util.units import size

if TYPE_CHECKING:
    from pathlib import Path


@click.group()
def cache() -> None:
    """Look at the cache, or make room in it."""


@cache.command(name="dir")
def cache_dir() -> None:
    """Print where the cache is."""
    click.echo(_store_root())


@cache.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def cache_list(as_json: bool) -> None:
    """List what is in the cache: kind, size, date, and the tag, model or file that it is of."""
    from llamacpp_orchestrator import console
    from llamacpp_orchestrator.util import store

    entries = store.entries(_store_root())
    lines = [f"{entry.kind:<14}{size(entry.bytes):>10}  {entry.date}  {entry.said}" for entry in entries]
    total = f"{'in all':<14}{size(sum(entry.bytes for entry in entries)):>10}"
    console.result(entries, [*lines, total] if entries else [], as_json)


@cache.command(name="prune")
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    metavar="KIND",
    shell_complete=arguments.complete_kind,
    # Written out, for the place that has them would be imported at every start.
    help="Only of this kind: source, binaries, builds, environments, views, merged, imatrix, bundles, downloads, logs, "
    "memo, home, sent.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
def cache_prune(kinds: tuple[str, ...], yes: bool) -> None:
    """Remove cached entries; the next run makes what it needs again. Models are in the Hugging Face cache and stay."""
    from llamacpp_orchestrator import console
    from llamacpp_orchestrator.util import store

    root = _store_root()
    chosen = kinds or store.PRUNED
    if unknown := [kind for kind in chosen if kind not in store.PRUNED]:
        raise JobError(f"no such kind: {unknown[0]}", f"it is one of {', '.join(store.PRUNED)}")
    if not yes and not sys.stdin.isatty():
        raise JobError("nothing was removed: there is nobody here to ask", "say it with --yes")
    if not yes:
        click.confirm(f"remove {', '.join(chosen)} from {root}?", abort=True, err=True)
    freed = store.prune(root, chosen)
    console.result(freed, [f"{size(freed)} freed"])


def _store_root() -> Path:
    return cli_options.here({}).cache
