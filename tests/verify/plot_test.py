"""The plot: valid XML, every point in its place, no label on another."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from llamacpp_orchestrator.verify import plot
from llamacpp_orchestrator.verify.plot import Point

SPACE = {"s": "http://www.w3.org/2000/svg"}


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [
        (0.003, 0.04, (0.002, 0.005, 0.01, 0.02, 0.05)),
        (0.01, 0.01, (0.01, 0.02)),
        (0.011, 0.012, (0.01, 0.02)),
        (0.9, 0.95, (0.5, 1.0)),
        (6, 7, (5, 10)),
        (1e-6, 0.5, (1e-06, 1e-05, 0.0001, 0.001, 0.01, 0.1, 1.0)),
    ],
)
def test_marks_in_powers_of_ten(low: float, high: float, marks: tuple[float, ...]) -> None:
    found = plot.ticks(low, high)
    assert found == pytest.approx(marks)
    assert found[0] <= low * 1.001 and found[-1] * 1.001 >= high and found[0] < found[-1]


@pytest.mark.parametrize(
    ("low", "high", "marks"), [(2.1, 4.9, (2, 3, 4, 5)), (4.0, 4.0, (4, 5)), (1.5, 33.0, tuple(range(1, 34, 4)))]
)
def test_plain_marks(low: float, high: float, marks: tuple[int, ...]) -> None:
    assert plot.steps(low, high) == marks and marks[-1] >= high


def test_labels_keep_out_of_each_other() -> None:
    heights = plot.spread([(0, 10, 100), (5, 15, 98), (40, 50, 99), (0, 10, 300)])
    assert heights == (100, 100 - plot.LINE, 99, 300)


def test_the_picture() -> None:
    points = [
        Point(label="Q8_0", x=8.5, y=0.0005),
        Point(label="Q4_K_M", x=4.83, y=0.02),
        Point(label="Q4_K_S", x=4.8, y=0.02),
        Point(label="IQ2<&>", x=2.3, y=0.0),
    ]
    text = plot.svg("a <model> & \x00\x1b more", "bits", "divergence", points)
    assert text.startswith(plot.MARK) and "prefers-color-scheme: dark" in text
    root = ElementTree.fromstring(text)
    said = [each.text for each in root.iterfind(".//s:text", SPACE)]
    assert {"Q8_0", "Q4_K_M", "Q4_K_S", "IQ2<&>", "a <model> &  more", "bits", "divergence", "0.0001"} <= set(said)
    circles = [(float(each.attrib["cx"]), float(each.attrib["cy"])) for each in root.iterfind(".//s:circle", SPACE)]
    assert len(circles) == 4 and all(plot.LEFT <= x <= plot.RIGHT and plot.TOP <= y <= plot.BOTTOM for x, y in circles)
    assert circles[0][0] > circles[1][0] > circles[3][0] and circles[3][1] > circles[0][1] > circles[1][1]
    labels = {each.text: float(each.attrib["y"]) for each in root.iterfind(".//s:text", SPACE)}
    assert abs(labels["Q4_K_M"] - labels["Q4_K_S"]) >= plot.LINE
    assert len(root.findall(".//s:line[@class='lead']", SPACE)) == 1


def test_a_label_at_the_edge_stands_to_the_left() -> None:
    root = ElementTree.fromstring(plot.svg("t", "x", "y", [Point(label="a-long-label", x=5.0, y=1.0)] * 2))
    labels = [each for each in root.iterfind(".//s:text", SPACE) if each.text == "a-long-label"]
    assert [each.attrib["text-anchor"] for each in labels] == ["start", "start"]
    root = ElementTree.fromstring(plot.svg("t", "x", "y", [Point(label="a-long-label", x=x, y=1.0) for x in (4.0, 5.0, 5.0)]))
    labels = [each for each in root.iterfind(".//s:text", SPACE) if each.text == "a-long-label"]
    assert [each.attrib["text-anchor"] for each in labels] == ["start", "end", "end"]
