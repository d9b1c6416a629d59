"""The bench's own arithmetic: medians, what is kept of a former table, the picture, and the road that counts."""

from __future__ import annotations

import socket
import socketserver
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.bench import __main__ as bench
from tests.bench import growth
from tests.bench import picture
from tests.bench import table
from tests.bench.relay import relay
from tests.bench.table import Row
from tests.support import ROOT


def row(name: str, ratio: float = 0.5, goal: float = 1.0) -> Row:
    return table.compared(name, [(ratio, 1.0)], unit="s", goal=goal)


def test_a_row_compares_medians() -> None:
    made = table.compared("fleet: a against b", [(1.0, 4.0), (9.0, 5.0), (2.0, 6.0)], unit="s", goal=0.4)
    assert (made.group, made.ours, made.theirs, made.ratio, made.pairs, made.met) == ("fleet", 2.0, 5.0, 0.4, 3, True)
    assert not table.compared("x: y", [(2.0, 1.0)], unit="s", goal=1.9).met


def test_a_limit_is_the_other_side() -> None:
    made = table.limited("setup: tag", [0.75, 0.25, 1.0], 0.5, unit="s")
    assert (made.ours, made.theirs, made.ratio, made.goal, made.met) == (0.75, 0.5, 1.5, 1.0, False)


def test_a_group_that_is_measured_anew_replaces_its_rows() -> None:
    old = msgspec.structs.replace(table.here(), rows=(row("b: one"), row("b: two"), row("gone: x"), row("a: one")))
    joined = table.joined(old, [row("b: new", 0.1)], ["a", "b"])
    assert [each.name for each in joined.rows] == ["a: one", "b: new"]


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    kept = msgspec.structs.replace(table.here(), rows=(row("a: one"),))
    table.write(tmp_path / "made" / "results.json", kept)
    assert table.read(tmp_path / "made" / "results.json") == kept
    (tmp_path / "other.json").write_text('{"rows": [{"ours_s": 1}]}', encoding="utf-8")
    assert table.read(tmp_path / "other.json") is None
    assert table.read(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    "ratios",
    [pytest.param((0.5,), id="met"), pytest.param((2.0,), id="missed"), pytest.param((0.001, 1.0, 40.0), id="far apart")],
)
def test_the_picture_has_a_bar_for_each_row(ratios: tuple[float, ...]) -> None:
    rows = [row(f"a: <{number}>", ratio) for number, ratio in enumerate(ratios)]
    shapes = list(ElementTree.fromstring(picture.svg(rows)).iter("{http://www.w3.org/2000/svg}rect"))
    bars = [shape for shape in shapes if shape.get("class") in ("met", "missed")]
    assert [bar.get("class") for bar in bars] == ["met" if ratio <= 1 else "missed" for ratio in ratios]
    for bar in bars:
        left, wide = float(bar.attrib["x"]), float(bar.attrib["width"])
        assert left >= picture.LEFT and left + wide <= picture.RIGHT + 0.1


def test_the_road_counts_what_comes_back() -> None:
    class Echo(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(self.request.recv(100) * 1000)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server, relay(server.server_address[1]) as counted:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        with socket.create_connection(("127.0.0.1", counted.port)) as caller:
            caller.sendall(b"0123456789")
            got = 0
            while chunk := caller.recv(1 << 16):
                got += len(chunk)
        server.shutdown()
    assert got == counted.received == 10_000


@pytest.mark.parametrize(("main", "known"), [(bench.main, "noop"), (growth.main, "entries")])
def test_an_unknown_group_is_told(main: Callable[[list[str]], int], known: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([known, "nosuch"]) == 2
    complaint, hint = capsys.readouterr().err.splitlines()
    assert complaint == "error: no rows named nosuch" and known in hint


def test_what_is_kept_in_the_repository_is_a_table_of_known_groups() -> None:
    kept = table.read(ROOT / "benchmarks" / "results.json")
    assert kept and kept.rows
    assert {each.group for each in kept.rows} <= bench.GROUPS.keys()
    assert (ROOT / "benchmarks" / "results.svg").read_text(encoding="utf-8") == picture.svg(kept.rows)


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
    found = picture.ticks(low, high)
    assert found == pytest.approx(marks)
    assert found[0] <= low * 1.001 and found[-1] * 1.001 >= high and found[0] < found[-1]
