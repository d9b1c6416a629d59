"""The plot: valid XML with every point, the same bytes again, and nothing at all without the library."""

from __future__ import annotations

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
    assert plot.svg("t", POINTS) == ""
