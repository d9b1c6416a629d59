"""What quantizing has cost as pictures, where matplotlib is installed (the extra `plots`)."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any

from llamacpp_orchestrator.util.background import load

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARK = "<!-- made by llamacpp-orchestrator -->\n"
LEAST = 1e-6  # a mean below this is rounding
ABSENT = "no plot is drawn without matplotlib; it comes with the extra `plots`, or by python -m pip install matplotlib"


INK, ACCENT = "#010203", "#040506"  # stand in a picture of a page for the page's own colours
ROOM, LABEL = (190, 150), (48, 11)  # of a picture of a page between its outer points, and of a label in it: typographic points


def svg(title: str, points: Sequence[tuple[str, float, float]]) -> str:
    """Points (type, bits per weight, mean KL divergence) as SVG, equal bytes for equal points; "" without the library."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for label, bits, divergence in points:
            axes.plot(bits, max(divergence, LEAST), "o", label=label)
        axes.set(xlabel="bits per weight", ylabel="mean KL divergence", yscale="log")
        axes.set_title("".join(filter(str.isprintable, title)), parse_math=False)
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right center")

    picture = _drawn(draw, {}, dict.fromkeys(("Creator", "Date")))
    return MARK + picture if picture else ""


def element(mark: str, measure: str, points: Sequence[tuple[str, float, float]], by_powers: bool) -> str:
    """Points (type, bytes, measure) as an SVG element in the colours of the page around it; "" without the library.

    `mark` keeps its ids apart from those of the page's other elements.
    """

    def draw(figure: Figure) -> None:
        figure.set_size_inches(4.4, 3.2)
        axes = figure.subplots()
        places = [(count / 1e6, max(value, LEAST) if by_powers else value) for _, count, value in points]
        flat = [(count, math.log(value) if by_powers else value) for count, value in places]
        for (label, *_), place, drop in zip(points, places, drops(flat), strict=True):
            axes.plot(*place, "o", color=ACCENT)
            axes.annotate(label, place, xytext=(6, 3 - drop), textcoords="offset points", parse_math=False)
        axes.set(xlabel="size in MB", ylabel=measure, yscale="log" if by_powers else "linear")
        axes.margins(x=0.2, y=0.15)
        axes.grid(alpha=0.3)

    inks = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
    plain = {"figure.facecolor": "none", "axes.facecolor": "none", "axes.formatter.useoffset": False}
    picture = _drawn(draw, {**dict.fromkeys(inks, INK), **plain}, dict.fromkeys(("Creator", "Date", "Type", "Format")))
    changes = {' id="': f' id="{mark}-', 'href="#': f'href="#{mark}-', "url(#": f"url(#{mark}-", "*{": f"#{mark}-figure_1 *{{"}
    for old, new in {**changes, INK: "currentColor", ACCENT: "var(--accent)"}.items():
        picture = picture.replace(old, new)
    return picture[picture.find("<svg") :]


def drops(points: Sequence[tuple[float, float]]) -> list[float]:
    """How far below its place the label of each point stands, so that none lies on another; in typographic points."""
    scales = [room / ((max(axis) - min(axis)) or 1.0) for room, axis in zip(ROOM, zip(*points, strict=True), strict=True)]
    flat = [(x * scales[0], y * scales[1]) for x, y in points]
    shifts = dict[int, float]()
    for this in sorted(range(len(flat)), key=lambda number: -flat[number][1]):
        x, y = flat[this]
        for other in shifts:  # from the top down
            if abs(x - flat[other][0]) < LABEL[0] and y > flat[other][1] - shifts[other] - LABEL[1]:
                y = flat[other][1] - shifts[other] - LABEL[1]
        shifts[this] = flat[this][1] - y
    return [shifts[number] for number in range(len(flat))]


def _drawn(draw: Callable[[Figure], None], settings: dict[Any, Any], metadata: dict[str, None]) -> str:
    """What is drawn on an empty figure, as an SVG element behind its document type; "" without the library."""
    try:
        load("matplotlib.figure")
    except ImportError:
        return ""
    import matplotlib
    from matplotlib.figure import Figure

    text = io.StringIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that its font lacks; a viewer has its own
        matplotlib.rcdefaults()  # the user's own settings have no say
        matplotlib.rcParams.update({"svg.hashsalt": MARK, "svg.fonttype": "none", **settings})
        figure = Figure(layout="constrained")
        draw(figure)
        figure.savefig(text, format="svg", metadata=metadata)
    return text.getvalue().partition("?>")[2].lstrip()
