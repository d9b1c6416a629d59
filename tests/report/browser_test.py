"""The page in a real browser: narrow and wide, light and dark."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
from matplotlib import image

from llamacpp_orchestrator.report import page as report_page
from tests.support import browser
from tests.support import pages

pytestmark = pytest.mark.skipif(not browser.program(), reason="no chromium is installed")


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A page with a name that has no place to be broken at."""
    file = tmp_path / "report.html"
    file.write_text(report_page.html(pages.page("a-model-" + "x" * 120), str), encoding="utf-8")
    return file


@pytest.mark.parametrize("width", [400, 1400])
def test_it_is_drawn_light_and_dark(width: int, written: Path) -> None:
    for dark in (False, True):
        drawn = image.imread(browser.picture(written, width, dark))
        assert drawn.shape[1] == width
        levels, counts = numpy.unique((drawn[:, :, 1] * 255).astype(int), return_counts=True)  # of green, which eyes see most
        ground = levels[counts.argmax()]
        assert ground < 40 if dark else ground > 230
        assert len(levels) > 50 and counts.max() < 0.98 * counts.sum(), "it is not blank"


@pytest.mark.parametrize("width", [400, 720, 1150, 1156, 1400])
def test_nothing_stands_out_to_the_right(width: int, written: Path) -> None:
    shape = browser.layout(written, width)
    assert shape.frame == width and shape.content == width and shape.console == ""


def test_what_stands_out_or_complains_would_be_noticed(tmp_path: Path) -> None:
    file = tmp_path / "wide.html"
    file.write_text("<!doctype html><p style='width: 900px'>x</p><script>nothing()</script>")
    shape = browser.layout(file, 400)
    assert shape.content >= 900 and "nothing is not defined" in shape.console
