"""One setting for four network stacks: requests, the hub's client, git and uv, each in a process of its own."""

from __future__ import annotations

import os
import select
import shutil
import socket
import socketserver
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.support.server import Server
from tests.support.server import answer

STACKS = ("requests", "hub", "git", "uv")
# Asks one address by one stack, as the product does; tells the error's message and hint.
SCRIPT = """
import sys
from pathlib import Path
from llamacpp_orchestrator.cli import options as cli_options
from llamacpp_orchestrator.errors import OrchestrateError
stack, url, folder = sys.argv[1:]
try:
    here = cli_options.here({})
    if stack == "requests":
        from llamacpp_orchestrator.util import download
        download.get(url + "/simple", attempts=1)
    elif stack == "hub":
        from llamacpp_orchestrator.models import hub, hub_session
        hub_session.WAIT_SECONDS = 0.01
        hub.list_hub("org/m", "main", here, print, kind="model", weights=False, remote_code=False)
    elif stack == "git":
        from llamacpp_orchestrator.source import git
        git.resolve_at(url + "/org/llama.cpp", "b1")
    else:
        from llamacpp_orchestrator.environment import venv
        venv.resolve(("no-such-package",), "3.11", "upstream", (), here, Path(folder), print)
except OrchestrateError as error:
    print(error.message, error.hint, sep="\\n")
"""
UNTRUSTED = "name its certificates (PEM) in SSL_CERT_FILE"


def ask(stack: str, url: str, folder: Path, **env: str) -> str:
    """What one stack says of a server that has nothing, with no setting but these."""
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT", "PYTHONPATH") if name in os.environ}
    own = {
        "HOME": str(folder),
        "ORCHESTRATE_CACHE_DIR": str(folder / "cache"),
        "PIP_CONFIG_FILE": os.devnull,
        "UV_HTTP_RETRIES": "0",
    }
    servers = {"UV_HTTP_RETRIES": "0", "HF_ENDPOINT": url, "PIP_INDEX_URL": f"{url}/simple", "UV_CACHE_DIR": str(folder / "uv")}
    words = [sys.executable, "-c", SCRIPT, stack, url, str(folder)]
    child = subprocess.run(words, env=kept | own | servers | env, capture_output=True, text=True, timeout=100)
    assert child.returncode == 0, child.stderr
    return child.stdout


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.server_close()


@pytest.fixture
def authority(server: Server, tmp_path: Path) -> Path:
    """The certificate of an authority that nobody knows, by which the server has its own."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.url = f"https://localhost:{server.server_port}"
    file = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(file))
    return file


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
@pytest.mark.parametrize("variable", ["", "PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "cert"])
def test_certificates_that_are_set_for_one_serve_all(variable: str, server: Server, authority: Path, tmp_path: Path) -> None:
    env = {variable: str(authority)} if variable.isupper() else {}
    if variable == "cert":
        (tmp_path / "config.yaml").write_text(f"cert: {authority}\n")
        env["ORCHESTRATE_CONFIG"] = str(tmp_path / "config.yaml")
    for stack in STACKS:
        server.seen.clear()
        said = ask(stack, server.url, tmp_path, **env)
        assert (UNTRUSTED in said) is not variable and bool(server.seen) is bool(variable), f"{stack}: {said}"
        assert UNTRUSTED not in said if variable else UNTRUSTED in said, f"{stack}: {said}"


class Relay(socketserver.StreamRequestHandler):
    """One connection of a SOCKS 5 proxy without login (RFC 1928)."""

    def handle(self) -> None:
        """Connect to what the client names, and carry bytes both ways until one of them ends."""
        head = self.rfile.read(2)
        self.rfile.read(head[1])
        self.connection.sendall(b"\x05\x00")
        kind = self.rfile.read(4)[3]
        name = self.rfile.read({1: 4, 4: 16}.get(kind) or self.rfile.read(1)[0])
        port = int.from_bytes(self.rfile.read(2), "big")
        host = name.decode() if kind == 3 else socket.inet_ntop(socket.AF_INET if kind == 1 else socket.AF_INET6, name)
        self.server.seen.append(host)  # type: ignore[attr-defined]
        # Every name leads here, so that one which no server of names knows shows who has looked for it.
        with socket.create_connection(("127.0.0.1", port), timeout=20) as far:
            self.connection.sendall(b"\x05\x00\x00\x01\x7f\x00\x00\x01" + port.to_bytes(2, "big"))
            ends = {self.connection: far, far: self.connection}
            while True:
                for end in select.select(list(ends), [], [], 20)[0]:
                    data = end.recv(1 << 16)
                    if not data:
                        return
                    ends[end].sendall(data)


@pytest.fixture
def socks() -> Iterator[socketserver.ThreadingTCPServer]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Relay) as relay:
        relay.daemon_threads = True
        relay.seen = []  # type: ignore[attr-defined]
        import threading

        threading.Thread(target=relay.serve_forever, args=(0.02,), daemon=True).start()
        yield relay
        relay.shutdown()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_all_go_through_the_proxy_of_a_desktop(server: Server, socks: socketserver.ThreadingTCPServer, tmp_path: Path) -> None:
    proxy, url = f"socks://127.0.0.1:{socks.server_address[1]}", f"http://nowhere.invalid:{server.server_port}"
    for stack in STACKS:
        server.seen.clear()
        said = ask(stack, url, tmp_path, ALL_PROXY=proxy)
        assert server.seen and "nowhere.invalid" in socks.seen, f"{stack}: {said}"  # type: ignore[attr-defined]
        socks.seen.clear()  # type: ignore[attr-defined]


def test_a_proxy_is_not_asked_for_what_no_proxy_names(server: Server, tmp_path: Path) -> None:
    for stack in STACKS:
        server.seen.clear()
        said = ask(stack, server.url, tmp_path, ALL_PROXY="socks://127.0.0.1:9", NO_PROXY="127.0.0.1")
        assert server.seen, f"{stack}: {said}"


@pytest.mark.parametrize(("status", "way_out"), [(401, "it wants a login"), (403, "is the address right")])
def test_an_index_that_refuses_is_told_as_that(status: int, way_out: str, server: Server, tmp_path: Path) -> None:
    server.otherwise = answer(status)
    said = ask("uv", server.url, tmp_path)
    assert f"refuses uv ({status})" in said and way_out in said, said


def test_a_token_that_the_hub_refuses_is_told_as_perhaps_not_needed(server: Server, tmp_path: Path) -> None:
    server.otherwise = answer(401)
    said = ask("hub", server.url, tmp_path, HF_TOKEN="hf_old", ORCHESTRATE_TOKEN_HOSTS="127.0.0.1")
    assert "a public model needs none" in said, said
