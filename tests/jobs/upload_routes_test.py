"""The stage's hub that takes uploads, asked by the hub's own client: what it is told, and what it raises when something fails."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import CommitOperationAdd
from huggingface_hub import CommitOperationDelete
from huggingface_hub import HfApi
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.errors import RevisionNotFoundError
from huggingface_hub.utils import _http

from tests.support.stage.uploads import UploadHub

REPO = "org/m-GGUF"
GGUF = b"GGUF\3\0\0\0" + bytes(range(256)) * 40
CARD = b"---\nlicense: [mit, llama3.2]\nbase_model: org/m\n---\n# m\n"
COMMIT, BATCH = f"POST /api/models/{REPO}/commit/main", f"POST /{REPO}.git/info/lfs/objects/batch"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the library waits between its tries, in seconds; nobody does wait."""
    seconds: list[float] = []
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=seconds.append))
    return seconds


@pytest.fixture
def server(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    """The hub with an empty repository, for the library as it comes: not as a job of ours has told it to ask."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    factory = _http._GLOBAL_CLIENT_FACTORY
    huggingface_hub.set_client_factory(_http.default_client_factory)
    with UploadHub() as hub:
        threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        hub.seed(REPO, {})
        yield hub
        hub.over.set()
        hub.shutdown()
    huggingface_hub.set_client_factory(factory)


@pytest.fixture
def api(server: UploadHub) -> HfApi:
    return HfApi(endpoint=server.url, token="hf_test")


def publish(api: HfApi, files: dict[str, bytes], repo: str = REPO, **how: Any) -> str:
    """The commit's name after one commit of such files."""
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()]
    return api.create_commit(repo, operations, commit_message="Add m", commit_description="of b1", **how).oid


def test_a_repository_is_made_once_and_tells_its_rights(server: UploadHub, api: HfApi) -> None:
    assert api.whoami()["auth"]["accessToken"]["role"] == "write"
    for _ in range(2):
        assert api.create_repo("org/new", private=True, exist_ok=True).repo_id == "org/new"
    with pytest.raises(HfHubHTTPError, match="You already created this model repo"):
        api.create_repo("org/new")
    assert server.repos["org/new"].private and [commit.title for commit in server.commits("org/new")] == ["initial commit"]
    server.seed("org/source", {"README.md": CARD, "model.safetensors": GGUF}, gated="manual")
    info = api.repo_info("org/source", files_metadata=True)
    assert (info.sha, info.private, info.gated) == (server.head("org/source").oid, False, "manual")
    assert info.card_data and info.card_data.license == ["mit", "llama3.2"] and info.last_modified
    sizes = {file.rfilename: (file.size, bool(file.lfs)) for file in info.siblings or ()}
    assert sizes["README.md"] == (len(CARD), False) and sizes["model.safetensors"] == (len(GGUF), True)
    anonymous = HfApi(endpoint=server.url, token=False)
    with pytest.raises(GatedRepoError):
        anonymous.hf_hub_download("org/source", "README.md")
    for repo in ("org/new", "org/nowhere"):
        with pytest.raises(RepositoryNotFoundError):
            anonymous.model_info(repo)
    with pytest.raises(RevisionNotFoundError):
        api.model_info("org/source", revision="v2")


@pytest.mark.parametrize(("part_bytes", "puts"), [(1 << 20, 1), (4000, 3)])
def test_one_commit_of_a_text_and_a_large_file(part_bytes: int, puts: int, server: UploadHub, api: HfApi, tmp_path: Path) -> None:
    server.part_bytes = part_bytes
    parent = server.head(REPO).oid
    place = tmp_path / "m.gguf"
    place.write_bytes(GGUF)
    operations = [CommitOperationAdd("README.md", CARD), CommitOperationAdd("q/m.gguf", place)]
    commit = api.create_commit(REPO, operations, commit_message="Add m", commit_description="of b1", parent_commit=parent)
    head = server.head(REPO)
    assert (head.oid, head.title, head.description) == (commit.oid, "Add m", "of b1")
    assert head.files["q/m.gguf"] == GGUF and head.files["README.md"] == CARD
    assert b"\nq/m.gguf filter=lfs diff=lfs merge=lfs -text\n" in head.files[".gitattributes"], "as the hub itself adds it"
    assert sum(count for path, count in server.seen.items() if path.startswith("PUT ")) == puts
    tree = {file.path: file for file in api.list_repo_tree(REPO, recursive=True)}
    assert tree["q/m.gguf"].lfs.sha256 in server.blobs and tree["README.md"].lfs is None and "q" in tree
    for name, content in head.files.items():
        copy = api.hf_hub_download(REPO, name, revision=commit.oid, cache_dir=tmp_path)
        assert Path(copy).read_bytes() == content
    assert server.strayed == [], "the store is on another host name"


def test_nothing_goes_twice(server: UploadHub, api: HfApi) -> None:
    files = {"m.gguf": GGUF, "README.md": CARD}
    first = publish(api, files)
    assert publish(api, files) == first and server.seen[COMMIT] == 1, "it is not asked for a commit of nothing"
    api.create_repo("org/other")
    publish(api, files, "org/other")
    assert server.head("org/other").files["m.gguf"] == GGUF
    assert sum(count for path, count in server.seen.items() if path.startswith("PUT ")) == 1


def test_branches_and_deletions(server: UploadHub, api: HfApi) -> None:
    publish(api, {"old.txt": b"old"})
    api.create_branch(REPO, branch="next/one")
    with pytest.raises(HfHubHTTPError, match="Reference already exists"):
        api.create_branch(REPO, branch="next/one")
    api.create_commit(REPO, [CommitOperationDelete("old.txt")], commit_message="Go", revision="next/one")
    assert "old.txt" in server.head(REPO).files and "old.txt" not in server.head(REPO, "next/one").files
    with pytest.raises(HfHubHTTPError, match="A file with this name doesn't exist"):
        api.create_commit(REPO, [CommitOperationDelete("old.txt")], commit_message="Go", revision="next/one")


# What the library raises, in which words, and how many commits have been made then. It never asks for one commit twice.
FAULTS: dict[str, tuple[str, str, int]] = {
    "moved": ("HfHubHTTPError", "412 Precondition Failed.*A commit has happened since", 0),
    "500-before-commit": ("HfHubHTTPError", "500 Internal Server Error", 0),
    "500-after-commit": ("HfHubHTTPError", "500 Internal Server Error", 1),
    "cut-after-commit": ("RemoteProtocolError", "Server disconnected without sending a response", 1),
    "silent-commit": ("RemoteProtocolError", "Server disconnected without sending a response", 0),
    "elsewhere": ("HfUriError", "Unrecognized host 'localhost'", 1),
    "lost-blob": ("BadRequestError", "LFS pointer pointed to a file that does not exist.*Offending file: - m.gguf", 0),
    "quota": ("HfHubHTTPError", "403 Forbidden: Your storage patterns tripped our internal systems", 0),
    "read-only": ("HfHubHTTPError", "403 Forbidden: Forbidden: pass `create_pr=1`", 0),
    "no-lfs": ("HfHubHTTPError", "404 Not Found", 0),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_fault_is_for_the_client(fault: str, server: UploadHub, api: HfApi, waits: list[float]) -> None:
    kind, words, commits = FAULTS[fault]
    if fault == "silent-commit":
        server.over.set()  # it need not be waited for
    server.fault, parent = fault, server.head(REPO).oid
    with pytest.raises(Exception, match=f"(?s){words}") as caught:
        publish(api, {"m.gguf": GGUF}, parent_commit=parent)
    assert type(caught.value).__name__ == kind and waits == []
    assert [commit.title for commit in server.commits(REPO)].count("Add m") == commits
    assert server.seen[COMMIT] == (0 if fault in ("quota", "read-only", "no-lfs") else 1)
    lasting = fault in ("silent-commit", "elsewhere", "lost-blob", "quota", "read-only", "no-lfs")
    assert server.fault == (fault if lasting else "")


def test_a_quota_can_show_at_the_commit_and_a_private_one_has_other_words(server: UploadHub, api: HfApi) -> None:
    server.seed("org/private", {}, private=True)
    server.fault = "quota"
    with pytest.raises(HfHubHTTPError, match="Private repository storage limit reached, please upgrade your plan"):
        publish(api, {"README.md": CARD}, "org/private")
    assert server.seen["POST /api/models/org/private/commit/main"] == 1


@pytest.mark.parametrize("fault", ["cut-part", "part-503"])
@pytest.mark.parametrize(("part_bytes", "puts"), [(1 << 20, 2), (4000, 4)])
def test_a_part_is_sent_again(part_bytes: int, puts: int, fault: str, server: UploadHub, api: HfApi, waits: list[float]) -> None:
    server.part_bytes, server.fault = part_bytes, fault
    publish(api, {"m.gguf": GGUF})
    assert server.head(REPO).files["m.gguf"] == GGUF and server.fault == "" and waits == [1]
    assert sum(count for path, count in server.seen.items() if path.startswith("PUT ")) == puts


def test_other_bytes_show_only_where_they_are_read_back(server: UploadHub, api: HfApi) -> None:
    server.fault = "other-bytes"
    publish(api, {"m.gguf": GGUF, "README.md": CARD})
    entry = next(file for file in api.list_repo_tree(REPO) if file.path == "m.gguf")
    assert entry.size == len(GGUF) and entry.lfs.sha256 != hashlib.sha256(GGUF).hexdigest()
    assert server.head(REPO).files["README.md"] == CARD


def test_who_may_not_write(server: UploadHub, api: HfApi, monkeypatch: pytest.MonkeyPatch) -> None:
    anonymous = HfApi(endpoint=server.url, token=False)
    with pytest.raises(RepositoryNotFoundError, match="Invalid username or password"):
        publish(anonymous, {"README.md": CARD})
    with pytest.raises(HfHubHTTPError, match="401 Unauthorized"):
        anonymous.create_repo("org/new")
    server.fault = "read-only"
    assert api.whoami()["auth"]["accessToken"]["role"] == "read"
    with pytest.raises(HfHubHTTPError, match='rights to create a model under the namespace "org"'):
        api.create_repo("org/new")
    # The library looks whether it is there; and then forgets which endpoint it was given.
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    assert api.create_repo(REPO, exist_ok=True).repo_id == REPO


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ("---\n- a\n---\n", "must be of type object"),
        ("---\nlicense: my own\n---\n", '"license" must be one of'),
        ("---\nbase_model: ./m\n---\n", '"base_model" with value "./m" is not valid'),
        ("---\nbase_model_relation: child\n---\n", '"base_model_relation" must be one of'),
        ("---\nlanguage: [en, zh-CN]\n---\n", '"language" must only contain lowercase characters'),
        ("---\ntags: gguf\n---\n", '"tags" must be an array'),
        ("---\na: b: c\n---\n", "mapping values are not allowed here"),
    ],
)
def test_a_card_that_the_hub_refuses_ends_before_anything_is_sent(card: str, words: str, server: UploadHub, api: HfApi) -> None:
    with pytest.raises(ValueError, match=words):
        publish(api, {"README.md": card.encode(), "m.gguf": GGUF})
    assert not server.blobs and not server.seen[BATCH]


def test_a_card_without_front_matter_is_taken_with_a_warning(server: UploadHub, api: HfApi) -> None:
    with pytest.warns(UserWarning, match="empty or missing yaml metadata in repo card"):
        publish(api, {"README.md": b"# m\n"})


def test_the_newer_store_is_not_there_unless_it_is_set(server: UploadHub, api: HfApi) -> None:
    route = f"{server.url}/api/models/{REPO}/xet-write-token/main"
    get, headers = huggingface_hub.get_session().get, api._build_hf_headers()
    assert get(route, headers=headers).status_code == 404 and get(route).status_code == 401
    server.xet = f"{server.url}/newer"
    answer = get(route, headers=headers)
    assert answer.headers["X-Xet-Cas-Url"] == answer.json()["casUrl"] == server.xet


def test_a_card_that_is_there_already_can_be_wrong(server: UploadHub, api: HfApi) -> None:
    for repo, card in (("org/a", b"---\na: b: c\n---\n"), ("org/b", b"\xff")):
        server.seed(repo, {"README.md": card})
        assert api.model_info(repo).card_data is None
