from __future__ import annotations

import contextvars
import gzip
import hashlib
import io
import os
import stat
import sys
import tarfile
import time
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import Stopped
from llamacpp_orchestrator.errors import anonymous
from llamacpp_orchestrator.util import archive
from llamacpp_orchestrator.util import cancel
from llamacpp_orchestrator.util import download
from tests.support.archives import STRAYS
from tests.support.archives import File
from tests.support.archives import stray
from tests.support.archives import tarball
from tests.support.archives import zipped
from tests.support.server import Asked
from tests.support.server import Route
from tests.support.server import Server
from tests.support.server import answer
from tests.support.server import in_turn

BODY = bytes(range(256)) * 4000
SHA = hashlib.sha256(BODY).hexdigest()


def ranged(request: Asked) -> None:
    start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
    where = {"Content_Range": f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"} if start else {}
    answer(206 if start else 200, BODY[start:], ETag='"one"', **where)(request)


def called_whole(request: Asked) -> None:
    """As `ranged`, from a server that calls a part what it calls the whole."""
    start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
    answer(200, BODY[start:], ETag='"one"', Content_Range=f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")(request)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        yield made


@pytest.fixture
def other() -> Iterator[Server]:
    with Server() as made:
        yield made


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(download, "BACKOFF_SECONDS", 0.001)
    yield
    cancel.STOP.clear()


cut = answer(200, BODY[:300_000], Content_Length=str(len(BODY)), ETag='"one"')
cut_unsaid = answer(200, BODY[:300_000], Content_Length="")


# --- addresses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://me:secret@host:80/x?sign=secret#y", "https://host:80/x"),
        ("https://me:sec/ret@host/x", "https://host/x"),
        ("https://me:sec#ret@host/x", "https://host/x"),
        ("https://me:sec?ret@host/x", "https://host/x"),
        ("https://me:sec@ret@host/x", "https://host/x"),
        ("https://me:secret@[::1/x", "https://[::1/x"),
        ("https://me:secret", "https://me:..."),
        ("me:secret@host/x", "host/x"),
        ("https://host/a@b", "https://host/a@b"),
        ("https://[::1]:80/a@b", "https://[::1]:80/a@b"),
        ("ssh://git@host:22/x", "ssh://host:22/x"),
        ("git@github.com:me/x", "git@github.com:me/x"),
        ("file:///a@b/c", "file:///a@b/c"),
        ("pypi", "pypi"),
    ],
)
def test_what_is_shown_of_an_address(url: str, said: str) -> None:
    assert anonymous(url) == said


@pytest.mark.parametrize(
    "text", ["'https://me:secret@h/x': no", "https://secret@h and http://a:secret@b:1/c", "x://me:sec@ret@h?y"]
)
def test_an_error_holds_no_login(text: str) -> None:
    error = NetworkError(text, text)
    assert "sec" not in f"{error} {error.message} {error.hint} {error.lines()}"


# --- JSON ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [answer(500), answer(503), answer(429, Retry_After="0"), answer(403, Retry_After="0")])
def test_json_is_asked_again(server: Server, first: Route) -> None:
    server.routes["/x"] = in_turn(first, answer(200, b'{"a": 1}'))
    assert download.get_json(f"{server.url}/x") == {"a": 1}
    assert server.times("/x") == 2


@pytest.mark.parametrize(
    ("route", "status", "said", "times"),
    [
        (answer(401), 401, "the token is missing", 1),
        (answer(403), 403, "refused", 1),
        (answer(404), 404, "no such thing", 1),
        (answer(500), 500, "HTTP 500", 3),
        (answer(403, X_RateLimit_Remaining="0", X_RateLimit_Reset="1700000000"), 403, "resets at 2023-11-14 22:13 UTC", 1),
        (answer(403, X_RateLimit_Remaining="0", X_RateLimit_Reset="9" * 30), 403, "the rate limit is used up (HTTP 403)", 1),
        (answer(429, Retry_After="0"), 429, "try again in 0 s", 3),
        (answer(200, b"<html>log in</html>"), 0, "login page", 1),
        (answer(200, b"[1, 2", Content_Length="50"), 0, "cannot be read", 3),
    ],
)
def test_json_refused(server: Server, route: Route, status: int, said: str, times: int) -> None:
    server.routes["/x"] = route
    with pytest.raises(NetworkError) as caught:
        download.get_json(f"{server.url}/x?secret=1", settings_hint="set THE_TOKEN")
    assert (caught.value.status, caught.value.hint) == (status, "set THE_TOKEN")
    assert said in caught.value.message
    assert "secret" not in caught.value.message
    assert server.times("/x?secret=1") == times


FAR = ("86400", "Fri, 31 Dec 9999 23:59:59 GMT", "9" * 400)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("after", FAR)
@pytest.mark.parametrize("ask", ["get", "fetch", "head"])
def test_a_wait_that_is_too_long_is_an_end(server: Server, status: int, after: str, ask: str, tmp_path: Path) -> None:
    server.routes["/x"], began = answer(status, Retry_After=after), time.monotonic()
    with pytest.raises(NetworkError, match="ORCHESTRATE_WAIT_SECONDS") as caught:
        if ask == "get":
            download.get(f"{server.url}/x")
        elif ask == "head":
            download.head(f"{server.url}/x")
        else:
            download.fetch(f"{server.url}/x", tmp_path / "f", sha256=SHA)
    assert caught.value.status == status and server.times("/x") == 1 and time.monotonic() - began < 5


@pytest.mark.parametrize("ask", ["get", "fetch"])
def test_waits_of_one_request_have_a_limit_together(
    server: Server, ask: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, said = list[float](), list[str]()
    monkeypatch.setattr(cancel, "wait", waits.append)
    server.routes["/x"] = answer(429, Retry_After="20")
    context = contextvars.copy_context()
    context.run(cancel.tell.set, said.append)
    with pytest.raises(NetworkError, match="try again in 20 s"):
        if ask == "get":
            context.run(download.get, f"{server.url}/x")
        else:
            context.run(lambda: download.fetch(f"{server.url}/x", tmp_path / "f", sha256=SHA))
    assert waits == [20.0] and server.times("/x") == 2
    assert said == [f"waiting 20 s, as {server.url.removeprefix('http://')} asks"]
    monkeypatch.setattr(cancel, "longest", 100.0)
    server.routes["/y"] = in_turn(answer(503, Retry_After="40"), answer(429, Retry_After="40"), answer(200, BODY))
    if ask == "get":
        assert download.get(f"{server.url}/y").content == BODY
    else:
        download.fetch(f"{server.url}/y", tmp_path / "g", sha256=SHA)
    assert waits == [20.0, 40.0, 40.0]


def test_json_of_no_server() -> None:
    with pytest.raises(NetworkError, match="cannot be read"):
        download.get_json("http://127.0.0.1:9/x")


def test_token_stays_at_its_host(server: Server, other: Server) -> None:
    server.routes["/near"] = answer(301, Location="/far")
    server.routes["/far"] = answer(302, Location=f"{other.url}/x")
    other.routes["/x"] = answer(200, b"{}")
    assert download.get_json(f"{server.url}/near", token="T0KEN") == {}
    assert [headers.get("authorization") for _, _, headers in server.seen] == ["Bearer T0KEN"] * 2
    assert "T0KEN" not in str(other.seen)


def test_netrc_does_not_replace_the_token(server: Server, other: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password mine\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server.routes["/x"] = answer(302, Location=f"{other.url}/x")
    other.routes["/x"] = answer(200, b"{}")
    download.get_json(f"{server.url}/x", token="T0KEN")
    assert server.seen[0][2]["authorization"] == "Bearer T0KEN"
    assert "authorization" not in other.seen[0][2]
    download.get_json(f"{other.url}/x")
    assert other.seen[1][2]["authorization"].startswith("Basic")


# --- HEAD ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "size"), [(answer(200, b"abc"), 3), (answer(404), None), (answer(302, Location="/store"), 0), (answer(403), None)]
)
def test_head(server: Server, route: Route, size: int | None) -> None:
    server.routes |= {"/x": route, "/store": answer(403)}
    assert download.head(f"{server.url}/x") == size


@pytest.mark.parametrize("ask", [download.head, download.probe])
def test_a_redirect_to_no_address(server: Server, ask: Callable[[str], object]) -> None:
    server.routes["/x"] = answer(302, Location="http://[")
    with pytest.raises(NetworkError, match="no address|Invalid"):
        ask(f"{server.url}/x")


def test_head_of_no_server() -> None:
    with pytest.raises(NetworkError, match="cannot be reached"):
        download.head("http://127.0.0.1:9/x")


# --- files --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "route",
    [
        ranged,
        in_turn(cut, ranged),
        in_turn(cut, cut, ranged),
        in_turn(cut, called_whole),
        in_turn(cut_unsaid, ranged),
        in_turn(answer(500), answer(429, Retry_After="0"), ranged),
        in_turn(cut, answer(416), ranged),
        in_turn(cut, answer(206, BODY[9:], Content_Range="bytes 9-"), ranged),
        answer(200, BODY, Content_Encoding="gzip"),
        answer(200, BODY, Content_Length=""),
    ],
)
def test_fetch(server: Server, tmp_path: Path, route: Route) -> None:
    server.routes["/f.bin"] = route
    told: list[tuple[int, int]] = []
    dest = tmp_path / "new" / "f.bin"
    digest = download.fetch(
        f"{server.url}/f.bin", dest, sha256=SHA, size=len(BODY), progress=lambda done, total: told.append((done, total))
    )
    assert digest == SHA
    assert dest.read_bytes() == BODY
    assert told[-1] == (len(BODY), len(BODY))
    assert [path.name for path in dest.parent.iterdir()] == ["f.bin"]


def test_fetch_goes_on_where_it_was_cut(server: Server, tmp_path: Path) -> None:
    server.routes["/f.bin"] = in_turn(cut, ranged)
    download.fetch(f"{server.url}/f.bin", tmp_path / "f.bin", sha256=SHA)
    _, _, again = server.seen[1]
    assert (again["range"], again["if-range"], again["accept-encoding"]) == ("bytes=300000-", '"one"', "identity")


def test_fetch_resumes_an_earlier_run(server: Server, tmp_path: Path) -> None:
    server.routes["/f.bin"] = ranged
    (tmp_path / "f.bin.part").write_bytes(BODY[:500])
    assert download.fetch(f"{server.url}/f.bin", tmp_path / "f.bin", sha256=SHA) == SHA
    assert server.seen[0][2]["range"] == "bytes=500-"


def test_fetch_starts_over_when_the_earlier_part_was_another_file(server: Server, tmp_path: Path) -> None:
    server.routes["/f.bin"] = ranged
    (tmp_path / "f.bin.part").write_bytes(b"x" * 500)
    assert download.fetch(f"{server.url}/f.bin", tmp_path / "f.bin", sha256=SHA) == SHA


def test_fetch_trusts_no_earlier_part_that_it_cannot_check(server: Server, tmp_path: Path) -> None:
    server.routes["/f.bin"] = ranged
    (tmp_path / "f.bin.part").write_bytes(b"x" * 500)
    assert download.fetch(f"{server.url}/f.bin", tmp_path / "f.bin", sha256=None) == SHA
    assert "range" not in server.seen[0][2]


def test_fetch_of_a_whole_part_asks_nobody(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f.bin.part").write_bytes(BODY)
    assert download.fetch(f"{server.url}/f.bin", tmp_path / "f.bin", sha256=SHA, size=len(BODY)) == SHA
    assert server.seen == []


@pytest.mark.parametrize(
    ("name", "route", "sha256", "size", "said"),
    [
        ("f.bin", answer(200, b"other"), SHA, 0, [SHA, hashlib.sha256(b"other").hexdigest()]),
        ("f.bin", answer(200, b"other"), None, 7, ["5 bytes, expected 7"]),
        ("f.bin", answer(200, b""), None, 0, ["0 bytes"]),
        ("f.zip", answer(200, b"\n<!DOCTYPE html>log in"), None, 0, ["a web page instead of f.zip"]),
        ("f.bin", answer(200, b"<html>"), SHA, 0, ["a web page"]),
        ("f.tar.gz", answer(200, b"PK..."), None, 0, ["something else"]),
    ],
)
def test_fetch_of_the_wrong_thing(
    server: Server, tmp_path: Path, name: str, route: Route, sha256: str | None, size: int, said: list[str]
) -> None:
    server.routes[f"/{name}"] = route
    with pytest.raises(IntegrityError) as caught:
        download.fetch(f"{server.url}/{name}", tmp_path / name, sha256=sha256, size=size)
    assert all(each in caught.value.message for each in said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("route", "status", "said", "times"),
    [
        (answer(404), 404, "no such thing", 1),
        (answer(503), 503, "HTTP 503", 3),
        (cut_unsaid, 0, "ended early", 3),
    ],
)
def test_fetch_gives_up(server: Server, tmp_path: Path, route: Route, status: int, said: str, times: int) -> None:
    server.routes["/f.bin"] = route
    (tmp_path / "f.bin").write_text("earlier")
    with pytest.raises(NetworkError, match=said) as caught:
        download.fetch(f"{server.url}/f.bin", tmp_path / "f.bin", sha256=SHA, size=len(BODY))
    assert caught.value.status == status
    assert server.times("/f.bin") == times
    assert (tmp_path / "f.bin").read_text() == "earlier"


def test_fetch_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "a b.bin").write_bytes(BODY)
    url = (tmp_path / "from" / "a b.bin").as_uri()
    assert download.fetch(url, tmp_path / "f.bin", sha256=SHA) == SHA
    with pytest.raises(NetworkError, match="no such file"):
        download.fetch(url + "x", tmp_path / "g.bin", sha256=SHA)


def test_fetch_needs_room(tmp_path: Path) -> None:
    with pytest.raises(OrchestrateError, match="need 1000000.0 TB to download x, have"):
        download.fetch("http://127.0.0.1:9/x", tmp_path / "x", sha256=None, size=10**18)


def test_fetch_too_slow(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "SLOWEST_SECONDS", -1.0)
    server.routes["/f.bin"] = answer(200, b"drip")
    with pytest.raises(NetworkError, match="too slowly"):
        download.fetch(f"{server.url}/f.bin", tmp_path / "f.bin", sha256=SHA)
    monkeypatch.setattr(download, "SLOWEST_BYTES", 1)
    server.routes["/f.bin"] = ranged
    assert download.fetch(f"{server.url}/f.bin", tmp_path / "f.bin", sha256=SHA) == SHA


def test_stop_ends_a_download_and_keeps_its_part(server: Server, tmp_path: Path) -> None:
    server.routes["/f.bin"] = ranged

    def progress(done: int, total: int) -> None:
        cancel.STOP.set()

    with pytest.raises(Stopped) as caught:
        download.fetch(f"{server.url}/f.bin", tmp_path / "f.bin", sha256=SHA, progress=progress)
    assert caught.value.exit_code == 130
    assert (tmp_path / "f.bin.part").stat().st_size > 0


# --- archives -----------------------------------------------------------------------------------------------------------


GOOD: tuple[File, ...] = (
    ("top/", None, 0o755, ""),
    ("top/bin/tool", b"run", 0o755, ""),
    ("top/bin/libx.so", b"", 0o777, "libx.so.1"),
    ("top/bin/libx.so.1", b"lib", 0o644, ""),
    ("top/data", b"", 0o777, "bin"),
    ("top/doc/notes.txt", b"notes", 0o644, ""),
    ("top/doc/up", b"", 0o777, "../bin/tool"),
)


@pytest.mark.parametrize("make", [tarball, zipped])
def test_unpack(tmp_path: Path, make: Callable[..., Path]) -> None:
    packed = make(tmp_path / ("a.zip" if make is zipped else "a.tar.gz"), *GOOD)
    dest = tmp_path / "dest"
    archive.unpack(packed, dest, strip=1, keep=lambda path: path != "doc/notes.txt")
    assert sorted(path.relative_to(dest).as_posix() for path in dest.rglob("*") if path.is_file()) == [
        "bin/libx.so",
        "bin/libx.so.1",
        "bin/tool",
        "doc/up",
    ]
    assert (dest / "bin/libx.so").read_bytes() == b"lib"
    assert (dest / "doc/up").read_bytes() == b"run"
    assert (dest / "data" / "tool").read_bytes() == b"run"
    if sys.platform != "win32":
        assert (dest / "bin/libx.so").readlink() == Path("libx.so.1")
        assert os.access(dest / "bin/tool", os.X_OK)
        assert not os.access(dest / "bin/libx.so.1", os.X_OK)


def test_unpack_twice_replaces_files_and_links(tmp_path: Path) -> None:
    packed = tarball(tmp_path / "a.tar.gz", *GOOD)
    for _ in range(2):
        archive.unpack(packed, tmp_path / "dest")
    assert (tmp_path / "dest/top/bin/libx.so").read_bytes() == b"lib"


def test_unpack_a_bare_dot_is_no_part(tmp_path: Path) -> None:
    packed = tarball(tmp_path / "a.tar.gz", ("./", None, 0o755, ""), ("./top/tool", b"run", 0o755, ""))
    archive.unpack(packed, tmp_path / "dest", strip=1)
    assert (tmp_path / "dest/tool").read_bytes() == b"run"


def test_unpack_a_hard_link(tmp_path: Path) -> None:
    packed = tmp_path / "a.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        info = tarfile.TarInfo("top/one")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"run"))
        info = tarfile.TarInfo("top/sub/two")
        info.type, info.linkname = tarfile.LNKTYPE, "top/one"
        tar.addfile(info)
    archive.unpack(packed, tmp_path / "dest", strip=1)
    assert (tmp_path / "dest/sub/two").read_bytes() == b"run"


def test_unpack_copies_where_links_are_not_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError("a privilege is missing")

    chain = (
        *GOOD,
        ("top/first", b"", 0o777, "second"),
        ("top/second", b"", 0o777, "bin/tool"),
        ("top/lost", b"", 0o777, "nowhere"),
    )
    packed = tarball(tmp_path / "a.tar.gz", *chain)
    monkeypatch.setattr(Path, "symlink_to", refuse)
    archive.unpack(packed, tmp_path / "dest", strip=1)
    assert (tmp_path / "dest/first").read_bytes() == b"run"
    assert (tmp_path / "dest/data/libx.so").read_bytes() == b"lib"
    assert not (tmp_path / "dest/lost").exists()


@pytest.mark.parametrize("make", [tarball, zipped])
@pytest.mark.parametrize("number", range(len(STRAYS)))
def test_unpack_refuses(tmp_path: Path, make: Callable[..., Path], number: int) -> None:
    packed = make(tmp_path / ("a.zip" if make is zipped else "a.tar.gz"), *stray(number, tmp_path / "in" / "beside"))
    with pytest.raises(IntegrityError, match="which (leads out|is a link out|lies behind|is longer)"):
        archive.unpack(packed, tmp_path / "in" / "dest")
    assert list(tmp_path.rglob("beside")) == []


@pytest.mark.parametrize(("name", "content"), [("a.tar.gz", b""), ("a.zip", b""), ("a.tar.gz", b"\x1f\x8b\x08\0")])
def test_what_is_no_archive_is_told_in_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(IntegrityError, match=f"^{name} is damaged: [^\n]+[^:]$"):
        archive.unpack(tmp_path / name, tmp_path / "dest")


@pytest.mark.parametrize("file", [("a", b"", 0o777, "x" * 5000), ("/".join(["x" * 200] * 30), b"x", 0o644, "")])
def test_what_no_disk_can_hold_is_told_of_the_archive(tmp_path: Path, file: File) -> None:
    with pytest.raises(IntegrityError, match="a.tar.gz is damaged: File name too long"):
        archive.unpack(tarball(tmp_path / "a.tar.gz", file), tmp_path / "dest")


def test_unpack_refuses_devices(tmp_path: Path) -> None:
    device: File = ("dev", b"", 0o644, "")
    for packed in (
        tarball(tmp_path / "a.tar.gz", device, kind=tarfile.CHRTYPE),
        tarball(tmp_path / "b.tar.gz", device, kind=tarfile.FIFOTYPE),
        zipped(tmp_path / "a.zip", device, kind=stat.S_IFBLK),
    ):
        with pytest.raises(IntegrityError, match="device or pipe"):
            archive.unpack(packed, tmp_path / "dest")


@pytest.mark.parametrize("make", [tarball, zipped])
def test_unpack_counts(tmp_path: Path, make: Callable[..., Path]) -> None:
    big: File = ("big", bytes(3_000_000), 0o644, "")
    packed = make(tmp_path / ("a.zip" if make is zipped else "a.tar.gz"), ("small", b"x", 0o644, ""), big)
    with pytest.raises(IntegrityError, match="more than 2 MB, the cap"):
        archive.unpack(packed, tmp_path / "dest", cap=2_000_000)
    archive.unpack(packed, tmp_path / "dest", cap=3_000_001)


def test_what_is_not_wanted_is_not_unpacked_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = tarball(tmp_path / "a.tar.gz", ("big", bytes(3_000_000), 0o644, ""), ("small", b"x", 0o644, ""))
    archive.unpack(packed, tmp_path / "dest", keep=lambda name: name == "small", cap=2_000_000)
    assert [path.name for path in (tmp_path / "dest").iterdir()] == ["small"]
    monkeypatch.setattr(archive, "HEADERS", 0)
    with pytest.raises(IntegrityError, match="more than 2 MB, the cap"):
        archive.unpack(packed, tmp_path / "dest", keep=lambda name: name == "small", cap=2_000_000)


@pytest.mark.parametrize("make", [tarball, zipped])
def test_an_archive_is_looked_through_without_unpacking_it(tmp_path: Path, make: Callable[..., Path]) -> None:
    packed = make(tmp_path / ("a.zip" if make is zipped else "a.tar.gz"), *GOOD, ("more", os.urandom(100_000), 0o644, ""))
    archive.check(packed)
    with pytest.raises(IntegrityError, match="more than 0 MB, the cap"):
        archive.check(packed, cap=50_000)
    packed.write_bytes(packed.read_bytes()[:50_000])
    with pytest.raises(IntegrityError, match="damaged"):
        archive.check(packed)
    assert list(tmp_path.iterdir()) == [packed]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.zip", b"PK but no more"),
        ("a.tar.gz", gzip.compress(b"no tar", mtime=0)),
        ("b.tar.gz", b"\x1f\x8b"),
        ("c.tar.gz", b"<html>"),
    ],
)
def test_unpack_damaged(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(IntegrityError, match="damaged"):
        archive.unpack(tmp_path / name, tmp_path / "dest")


def test_unpack_cut_and_clashing(tmp_path: Path) -> None:
    packed = tarball(tmp_path / "a.tar.gz", ("big", os.urandom(100_000), 0o644, ""))
    packed.write_bytes(packed.read_bytes()[:50_000])
    clash = tarball(tmp_path / "b.tar.gz", ("a", b"file", 0o644, ""), ("a/b", b"below", 0o644, ""))
    for each in (packed, clash):
        with pytest.raises(IntegrityError, match="damaged"):
            archive.unpack(each, tmp_path / "dest")


def test_stop_ends_unpacking(tmp_path: Path) -> None:
    packed = tarball(tmp_path / "a.tar.gz", *GOOD)
    cancel.STOP.set()
    with pytest.raises(Stopped):
        archive.unpack(packed, tmp_path / "dest")
