"""The plot: valid XML with every point, the same bytes again, and nothing at all without the library."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from llamacpp_orchestrator.verify import plot

POINTS = [("Q8_0", 8.5, 0.0005), ("Q4_K_M", 4.83, 0.02), ("Q4_K_S", 4.8, 0.02), ("IQ2<&>", 2.3, 0.0)]
SPACE = "{http://www.w3.org/2000/svg}"


def test_the_picture() -> None:
    text = plot.svg("a <model> & \x00\x1b $x$ 模型", POINTS)
    assert text.startswith(plot.MARK)
    root = ElementTree.fromstring(text)
    words = {"".join(each.itertext()) for each in root.iter(f"{SPACE}text")}
    assert {*(label for label, _, _ in POINTS), "a <model> &  $x$ 模型", "bits per weight", "mean KL divergence"} <= words
    assert len({shape.get("id") for shape in root.iter(f"{SPACE}g") if str(shape.get("id")).startswith("line2d")}) > len(POINTS)


def test_the_same_points_give_the_same_bytes_whatever_the_user_has_set(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("axes.grid: False\nfigure.facecolor: red\nsvg.fonttype: path\n")
    code = f"from llamacpp_orchestrator.verify import plot; print(plot.svg('t', {POINTS!r}), end='')"
    other = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")
    assert (other.stderr, other.stdout) == ("", plot.svg("t", POINTS))


def test_there_is_none_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert plot.svg("t", POINTS) == "" == plot.element("q", "perplexity", POINTS, False)


@pytest.mark.parametrize("by_powers", [False, True])
def test_the_picture_of_a_page_has_its_colours_and_ids_of_its_own(by_powers: bool) -> None:
    text = plot.element("q7", "mean KL divergence", [(label, bits * 1e6, value) for label, bits, value in POINTS], by_powers)
    root = ElementTree.fromstring(text)
    words = {"".join(each.itertext()) for each in root.iter(f"{SPACE}text")}
    assert {*(label for label, _, _ in POINTS), "size in MB", "mean KL divergence"} <= words
    ids = {str(shape.get("id")) for shape in root.iter() if shape.get("id")}
    used = {name for pair in re.findall(r'href="#([^"]+)|url\(#([^)]+)', text) for name in pair if name}
    assert all(name.startswith("q7-") for name in ids) and used and used <= ids
    assert "currentColor" in text and text.count("var(--accent)") >= len(POINTS)
    assert not re.search(r"(?:fill|stroke): #", text), "no colour but the page's"


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(1.0, 5.0)], [0]),
        ([(0.0, 0.0), (1.0, 1.0)], [0, 0]),
        # One place: one label below the other. Two of one height, but far from each other: both where they are.
        ([(1.0, 5.0), (1.0, 5.0), (1.0, 5.0)], [0, 11, 22]),
        ([(0.0, 5.0), (1.0, 5.0)], [0, 0]),
        # Nearly one place: the lower one makes way as far as it must.
        ([(0.0, 0.0), (0.0, 1.0), (0.0, 0.98), (1.0, 1.0)], [0, 0, 8, 0]),
    ],
)
def test_no_label_lies_on_another(points: list[tuple[float, float]], expected: list[float]) -> None:
    assert plot.drops(points) == pytest.approx(expected)
