"""The rows as a picture: how far each ratio is from its goal, on a scale of powers of ten, as SVG written by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from tests.bench.table import Row

MARK = "<!-- made by llamacpp-orchestrator -->\n"
WIDTH, LEFT, RIGHT = 980, 500, 940
TOP, STEP, BAR = 58, 24, 14
STYLE = """
  .back { fill: #ffffff } .grid { stroke: #d8dee4 } .goal { stroke: #1f2328; stroke-width: 2 }
  .met { fill: #1a7f37 } .missed { fill: #cf222e } text { fill: #1f2328; font: 12px sans-serif } .head { font-size: 14px }
  @media (prefers-color-scheme: dark) {
    .back { fill: #0d1117 } .grid { stroke: #30363d } .goal { stroke: #e6edf3 } text { fill: #e6edf3 }
    .met { fill: #3fb950 } .missed { fill: #f85149 }
  }
"""


def ticks(low: float, high: float) -> tuple[float, ...]:
    """Marks of an axis in powers of ten, around all values: 1, 2, 5, 10 ..., or the powers alone where those are many."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    fine = [factor * 10.0**power for power in range(first, last + 1) for factor in (1, 2, 5)]
    below = max(mark for mark in fine if mark <= low * (1 + 1e-9))
    above = next((mark for mark in fine if mark >= high * (1 - 1e-9) and mark > below), 2 * below)
    marks = tuple(mark for mark in fine if below <= mark <= above)
    if len(marks) <= 8:
        return marks
    return tuple(10.0**power for power in range(first, last + 1))


def svg(rows: Sequence[Row]) -> str:
    """One bar a row, from the goal's line to the left where there is room left, to the right where the goal is missed."""
    shares = [row.ratio / row.goal for row in rows]
    marks = ticks(min(*shares, 0.5), max(*shares, 2.0))
    bottom = TOP + STEP * len(rows)

    def across(share: float) -> float:
        return LEFT + (RIGHT - LEFT) * math.log10(share / marks[0]) / math.log10(marks[-1] / marks[0])

    parts = [
        f'<rect class="back" width="{WIDTH}" height="{bottom + 54}"/>',
        _text(20, 28, "what is measured / its goal", "start", "head"),
    ]
    for mark in marks:
        parts += [_line("grid", across(mark), TOP, bottom), _text(across(mark), bottom + 18, f"{mark:g}", "middle")]
    for number, (row, share) in enumerate(zip(rows, shares, strict=True)):
        parts += _bar(row, TOP + STEP * number + (STEP - BAR) / 2, across(share), across(1.0))
    parts.append(_line("goal", across(1.0), TOP - 8, bottom + 4))
    parts.append(_text(across(1.0), TOP - 14, "goal", "middle"))
    parts.append(_text((LEFT + RIGHT) / 2, bottom + 40, "less is better", "middle"))
    body, size = "\n".join(parts), f'width="{WIDTH}" height="{bottom + 54}" viewBox="0 0 {WIDTH} {bottom + 54}"'
    return f'{MARK}<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n<style>{STYLE}</style>\n{body}\n</svg>\n'


def _bar(row: Row, top: float, end: float, goal: float) -> list[str]:
    left, wide, base = min(end, goal), max(abs(end - goal), 1.0), top + BAR - 3
    bar = f'<rect class="{"met" if row.met else "missed"}" x="{left:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{BAR}"/>'
    # The figure stands on the side of the goal that the bar leaves free.
    side = (goal + 6, "start") if end <= goal else (goal - 6, "end")
    said = f"{row.ratio:g} of {row.goal:g}"
    return [bar, _text(LEFT - 10, base, row.name, "end"), _text(side[0], base, said, side[1])]


def _line(kind: str, x: float, top: float, bottom: float) -> str:
    return f'<line class="{kind}" x1="{x:.1f}" y1="{top:.1f}" x2="{x:.1f}" y2="{bottom:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
