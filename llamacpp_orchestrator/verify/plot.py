"""A small plot as SVG, written by hand: labelled points, the second axis in powers of ten."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

import msgspec

MARK = "<!-- made by llamacpp-orchestrator -->\n"
WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 84, 700, 48, 384
LETTER, LINE = 7.5, 15  # about the width of a letter and the height of a line
LEAST = 1e-6  # a mean below this is rounding
STYLE = """
  .back { fill: #ffffff } .grid { stroke: #d8dee4 } text { fill: #1f2328; font: 13px sans-serif }
  .point { fill: #0969da } .lead { stroke: #57606a; stroke-width: 0.7 }
  @media (prefers-color-scheme: dark) {
    .back { fill: #0d1117 } .grid { stroke: #30363d } text { fill: #e6edf3 } .point { fill: #58a6ff } .lead { stroke: #8b949e }
  }
"""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to show."""

    label: str
    x: float
    y: float


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


def steps(low: float, high: float) -> tuple[int, ...]:
    """Marks of a plain axis, whole numbers that reach around all values."""
    first, last = math.floor(low), max(math.ceil(high), math.floor(low) + 1)
    step = max(1, math.ceil((last - first) / 10))
    return tuple(range(first, last + step, step))


def spread(wanted: Sequence[tuple[float, float, float]]) -> tuple[float, ...]:
    """Heights of labels, moved up from those that are wanted, given as (left, right, height), until none lies on another."""
    placed: dict[int, float] = {}
    for index in sorted(range(len(wanted)), key=lambda index: -wanted[index][2]):
        left, right, height = wanted[index]
        near = [y for other, y in placed.items() if wanted[other][0] < right and left < wanted[other][1]]
        placed[index] = min([height, *(y - LINE for y in near)])
    return tuple(placed[index] for index in range(len(wanted)))


def svg(title: str, across: str, up: str, points: Sequence[Point]) -> str:
    """The whole picture of at least one point; readable on light and on dark ground."""
    xs, ys = steps(min(point.x for point in points), max(point.x for point in points)), _marks(points)
    width, height = RIGHT - LEFT, BOTTOM - TOP

    def at(x: float, y: float) -> tuple[float, float]:
        share = math.log10(max(y, LEAST) / ys[0]) / math.log10(ys[-1] / ys[0])
        return LEFT + width * (x - xs[0]) / (xs[-1] - xs[0]), BOTTOM - height * share

    parts = [f'<rect class="back" width="{WIDTH}" height="{HEIGHT}"/>', _said(LEFT, 26, title, "start")]
    for x in xs:
        place = at(x, ys[0])[0]
        parts += [_line("grid", place, TOP, place, BOTTOM), _said(place, BOTTOM + 20, str(x), "middle")]
    for y in ys:
        place = at(xs[0], y)[1]
        parts += [_line("grid", LEFT, place, RIGHT, place), _said(LEFT - 8, place + 4, f"{y:g}", "end")]
    parts.append(_said((LEFT + RIGHT) / 2, HEIGHT - 14, across, "middle"))
    parts.append(f'<g transform="rotate(-90 18 {(TOP + BOTTOM) / 2})">{_said(18, (TOP + BOTTOM) / 2, up, "middle")}</g>')
    parts += _points([(point, *at(point.x, point.y)) for point in points])
    body = "\n".join(parts)
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    return f'{MARK}<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n<style>{STYLE}</style>\n{body}\n</svg>\n'


def _marks(points: Sequence[Point]) -> tuple[float, ...]:
    values = [max(point.y, LEAST) for point in points]
    return ticks(min(values), max(values))


def _points(placed: Sequence[tuple[Point, float, float]]) -> list[str]:
    # More bits cost less: above a point on its right there is most room.
    boxes = []
    for point, x, y in placed:
        wide = len(point.label) * LETTER
        left = x + 7 if x + 7 + wide < WIDTH else x - 7 - wide
        boxes.append((left, left + wide, y - 4))
    parts = []
    for (point, x, y), (left, right, _), height in zip(placed, boxes, spread(boxes), strict=True):
        edge, anchor = (left, "start") if left > x else (right, "end")
        if height < y - 5:
            parts.append(_line("lead", x, y, edge, height + 2))
        parts.append(f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
        parts.append(_said(edge, height, point.label, anchor))
    return parts


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _said(x: float, y: float, text: str, anchor: str) -> str:
    plain = "".join(letter for letter in text if letter.isprintable())
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(plain)}</text>'
