"""The cells: how one checkpoint fares at one tag, and the table of them all."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tests.matrix import world as worlds
from tests.matrix.checkpoints import Architecture
from tests.matrix.world import Run
from tests.matrix.world import World

LAYOUTS = ("4.57", "5.23")
# As far as a log-probability, or a cosine of embeddings, may be off one in transformers.
CLOSE = {False: 0.02, True: 1e-4}
FINE = ("right", "refused")


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One checkpoint at one tag: right, refused (before its weights), late (after them), bare, or wrong; and why."""

    tag: str
    layout: str
    name: str
    verdict: str
    detail: str = ""

    @property
    def fine(self) -> bool:
        """Whether a user is served."""
        return self.verdict in FINE


def model(world: World, layout: str, one: Architecture) -> dict[str, object]:
    """A job's entry for a checkpoint."""
    source = world.scratch / "saved" / layout / one.name
    return {"source": str(source), "outtype": "f32", "name": f"{one.name}-{layout.replace('.', '')}", "verify": "content"}


def together(world: World, tag: str, architectures: Sequence[Architecture]) -> Path:
    """Convert all checkpoints at one tag; the folder of what could be made."""
    folder = world.scratch / "jobs" / tag / "all"
    models = [model(world, layout, one) for one in architectures for layout in LAYOUTS]
    world.run(folder, tag, models, "--keep-going")
    return folder / "dist"


def classified(world: World, judge: str, tag: str, layout: str, one: Architecture, dist: Path) -> Cell:
    """Judge what one checkpoint became at one tag, or see why it became nothing."""
    entry = model(world, layout, one)
    output = dist / f"{entry['name']}-f32.gguf"
    if output.exists():
        reference = world.scratch / "saved" / layout / one.name / "reference.json"
        try:
            said = json.loads(worlds.inside(judge, "answers.py", output, reference).splitlines()[-1])
            verdict, detail = judged(said, around(world, one.name), encoder=one.encoder)
        except RuntimeError as error:
            verdict, detail = "wrong", f"llama.cpp does not load it: {str(error)[-200:]}"
        output.unlink()
    else:
        done = world.run(world.scratch / "jobs" / tag / layout / one.name, tag, [entry])
        verdict, detail = failed(done) if done.code else ("late", "made alone, and not beside others")
    return Cell(tag=tag, layout=layout, name=one.name, verdict=verdict, detail=detail)


def failed(done: Run) -> tuple[str, str]:
    """A job that failed: by an error of ours before or after a weight was converted, or by one of somebody else's."""
    lines = done.text.splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if not errors or not any(line.startswith("hint: ") for line in lines) or "Traceback (most recent call last)" in done.text:
        return "bare", (errors or lines[-1:] or [""])[0]
    steps = (done.document or {}).get("steps", ())
    started = any(step["name"].startswith("convert") and step["status"] != "blocked" for step in steps)
    return ("late" if started else "refused"), re.sub(r"\S*/saved/", "", errors[0])


def judged(said: dict[str, object], arounds: Sequence[list[int]], *, encoder: bool) -> tuple[str, str]:
    """Whether an output answers as transformers does, and has the ids of the checkpoint's own tokenizer."""
    faults = []
    worst, other = float(str(said["worst"])), int(str(said["other"]))
    if not worst <= CLOSE[encoder]:
        faults.append(f"{'1 - cosine' if encoder else 'log-probability'} {worst:.2g} off")
    if other:
        faults.append(f"other ids for {other} of 300 cuts")
    # Where the two times of transformers disagree about what stands around a text, each is a tokenizer's own behaviour.
    if said["around"] not in arounds:
        faults.append(f"ids around a text: {said['around']} for {arounds}")
    return ("wrong", "; ".join(faults)) if faults else ("right", "")


def around(world: World, name: str) -> list[list[int]]:
    """The ids of a short text with what each time of transformers puts around it."""
    saved = world.scratch / "saved"
    return [json.loads((saved / layout / name / "around.json").read_text(encoding="utf-8")) for layout in LAYOUTS]


def render(cells: Sequence[Cell], notes: Sequence[str], judge: Sequence[str]) -> str:
    """The table as Markdown, and below it why cells are not right."""
    tags = list(dict.fromkeys(cell.tag for cell in cells))
    kept = {(cell.name, cell.layout, cell.tag): cell for cell in cells}
    lines = [
        "# Who saved it, and which tag converts it",
        "",
        "Small models with random weights, saved by transformers 4.57 (of the tag's own environment) and by transformers 5,",
        "converted to f32 and asked in a real llama.cpp. **right**: next-token log-probabilities within 0.02 of transformers 5",
        "for prompts of 8 to 120 tokens (embeddings: cosine over 0.9999), and the ids of the checkpoint's own tokenizer for 300",
        "random cuts of this project's two READMEs. **refused**: told before a weight was converted. Anything else is a fault.",
        f"Made by `make matrix` with {', '.join(judge)}.",
        "",
        f"| architecture | saved by | {' | '.join(tags)} |",
        f"|---|---|{'---|' * len(tags)}",
    ]
    for name in dict.fromkeys(cell.name for cell in cells):
        for layout in LAYOUTS:
            row = [kept[name, layout, tag].verdict for tag in tags if (name, layout, tag) in kept]
            lines.append(f"| {name} | {layout} | {' | '.join(row)} |")
    reasons: dict[tuple[str, str], list[str]] = {}
    for cell in cells:
        if cell.verdict != "right":
            reasons.setdefault((cell.verdict, cell.detail), []).append(f"{cell.name} of {cell.layout} at {cell.tag}")
    lines += ["", *(f"- {verdict}: {', '.join(where)}: {detail}" for (verdict, detail), where in reasons.items())]
    return "\n".join([*lines, *(f"- note: {note}" for note in notes)]).rstrip() + "\n"
