"""Makes the checkpoints, converts them at each tag, judges what comes out, and writes the table; 1 when a cell is not right."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import msgspec

from llamacpp_orchestrator.util.store import write_atomically
from tests.matrix import checkpoints
from tests.matrix import table
from tests.matrix import world as worlds
from tests.matrix.checkpoints import ARCHITECTURES
from tests.matrix.table import LAYOUTS
from tests.matrix.table import Cell
from tests.matrix.world import World
from tests.support import ROOT

RESULTS = ROOT / "benchmarks" / "matrix.md"


def main(wanted: list[str]) -> int:
    """All tags, or those that are named; only all of them are kept as the table."""
    if unknown := [tag for tag in wanted if tag not in worlds.TAGS]:
        print(f"error: no tag {' '.join(unknown)} here\nhint: there are {' '.join(worlds.TAGS)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="orchestrate-matrix-", ignore_cleanup_errors=True) as scratch:
        here = worlds.world(Path(scratch))
        judge = worlds.judge_python()
        notes = prepare(here, judge)
        cells = [cell for tag in wanted or worlds.TAGS for cell in converted(here, judge, tag)]
    text = table.render(cells, notes, worlds.JUDGE)
    print(text, flush=True)
    if not wanted:
        write_atomically(RESULTS, text)
    return 0 if all(cell.fine for cell in cells) else 1


def prepare(here: World, judge: str) -> list[str]:
    """Checkpoints as both times of transformers save them, each with its reference; answers with what is not as it should be."""
    data, spec, text = here.scratch / "data", here.scratch / "spec.json", here.scratch / "text.txt"
    say("making what both times of transformers save")
    worlds.checked([sys.executable, str(ROOT / "configs" / "demo_data.py"), str(data)])
    plain = [msgspec.to_builtins(one) | {"encoder": one.encoder} for one in ARCHITECTURES]
    spec.write_text(json.dumps(plain), encoding="utf-8")
    text.write_text("".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md")), "utf-8")
    folders = here.scratch / "tokenizers"
    notes = [checkpoints.tokenizer(one.tokenizer, data, folders / one.name) for one in ARCHITECTURES]
    saved = here.scratch / "saved"
    product = worlds.product_python(here, data / "tiny-llama")
    worlds.inside(product, "saved.py", "make", spec, folders, text, saved / LAYOUTS[0])
    worlds.inside(judge, "saved.py", "again", spec, saved / LAYOUTS[0], saved / LAYOUTS[1])
    worlds.inside(judge, "references.py", spec, saved, text)
    for layout in LAYOUTS:
        for one in ARCHITECTURES:
            if one.encoder:
                checkpoints.pooling(saved / layout / one.name)
    return [note for note in notes if note]


def converted(here: World, judge: str, tag: str) -> list[Cell]:
    """One tag's cells: all checkpoints in one job, then each that came to nothing in one of its own, to hear why."""
    cells = []
    with worlds.upstream(here, tag) as world:
        say(f"{tag}: converting")
        together = table.together(world, tag, ARCHITECTURES)
        for one in ARCHITECTURES:
            for layout in LAYOUTS:
                cell = table.classified(world, judge, tag, layout, one, together)
                say(f"{tag} {one.name} of transformers {layout}: {cell.verdict}{f' ({cell.detail})' if cell.detail else ''}")
                cells.append(cell)
    return cells


def say(text: str) -> None:
    """One line about what takes a while."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
