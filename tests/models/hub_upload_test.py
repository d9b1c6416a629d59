"""Uploads to the hub, whatever goes wrong on the way: one commit, or a refusal that says what to do."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http

from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.models import hub
from llamacpp_orchestrator.models import hub_upload
from llamacpp_orchestrator.models.hub_operations import LocalFile
from llamacpp_orchestrator.models.hub_operations import content_file
from llamacpp_orchestrator.models.hub_session import Place
from llamacpp_orchestrator.models.hub_upload import Upload
from llamacpp_orchestrator.util import cancel
from tests.support.stage.uploads import UploadHub
from tests.support.stage.uploads import UploadRoute

REPO = "tester/m-GGUF"
GGUF = b"GGUF\3\0\0\0" + bytes(range(256)) * 2000


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits between two tries."""
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr(hub_upload, "wait", lambda seconds: cancel.look_for_stop())
    monkeypatch.setattr("llamacpp_orchestrator.models.hub_session.put_off", lambda headers, seconds, left, who: left)


@pytest.fixture
def files(tmp_path: Path) -> tuple[LocalFile, ...]:
    path = tmp_path / "m-q8_0.gguf"
    path.write_bytes(GGUF)
    model = LocalFile(path=path.name, size=len(GGUF), sha256=hashlib.sha256(GGUF).hexdigest(), file=path)
    return (model, content_file("job.yaml", b"version: 1\n"))


@pytest.fixture
def upload(uploads: UploadHub, files: tuple[LocalFile, ...]) -> Upload:
    """Two files and a card for a repository that is there, and holds nothing."""
    uploads.seed(REPO, {})
    place = Place(endpoint=uploads.url, repo_id=REPO, revision="main", trusted=True)
    return Upload(place=place, files=files, title="Add files", card=lambda text, paths: text or "---\nlicense: mit\n---\n# m\n")


def titles(uploads: UploadHub) -> list[str]:
    return [commit.title for commit in uploads.commits(REPO)]


def silent(text: str) -> None:
    """Nobody listens."""


def test_all_goes_in_one_commit_and_then_nothing(uploads: UploadHub, upload: Upload) -> None:
    lines: list[str] = []
    sent = hub_upload.send(upload, lines.append)
    assert titles(uploads) == ["initial commit", "Add files"] and sent.commit == uploads.head(REPO).oid
    assert set(sent.paths) == {"m-q8_0.gguf", "job.yaml", "README.md"}
    assert uploads.head(REPO).files["m-q8_0.gguf"] == GGUF and uploads.head(REPO).files["job.yaml"] == b"version: 1\n"
    assert "sending 3 files, 50% of 512.0 kB" in lines and any(line.startswith("hashing") for line in lines)
    posts = {line for line in uploads.seen if line.startswith(("POST", "PUT"))}
    again = hub_upload.send(upload, silent)
    assert again == hub_upload.Sent(commit=sent.commit, paths=())
    assert {line for line in uploads.seen if line.startswith(("POST", "PUT"))} == posts
    assert not uploads.strayed, "the store of large files gets no token"


def test_only_what_has_changed_is_sent(uploads: UploadHub, upload: Upload) -> None:
    hub_upload.send(upload, silent)
    changed = msgspec.structs.replace(upload, files=(upload.files[0], content_file("job.yaml", b"version: 1 # new\n")))
    assert hub_upload.send(changed, silent).paths == ("job.yaml",)
    assert uploads.head(REPO).files["m-q8_0.gguf"] == GGUF
    assert sum(count for line, count in uploads.seen.items() if line.startswith("PUT")) == 1


@pytest.mark.parametrize("there", [0, 2])
def test_no_bar_of_the_library_is_shown_for_any_number_of_large_files(
    there: int, uploads: UploadHub, upload: Upload, capfd: pytest.CaptureFixture[str]
) -> None:
    large = (upload.files[0], content_file("n-q8_0.gguf", GGUF[::-1]))
    uploads.blobs |= {file.sha256: content for file, content in list(zip(large, (GGUF, GGUF[::-1]), strict=True))[:there]}
    assert {file.path for file in large} < set(hub_upload.send(msgspec.structs.replace(upload, files=large), silent).paths)
    assert capfd.readouterr() == ("", "")


def test_a_large_file_goes_in_parts(uploads: UploadHub, upload: Upload) -> None:
    uploads.part_bytes = 200_000
    hub_upload.send(upload, silent)
    assert uploads.head(REPO).files["m-q8_0.gguf"] == GGUF
    assert sum(line.startswith("PUT") for line in uploads.seen) == 3


# What happens → whether there is a commit of ours in the end.
@pytest.mark.parametrize(
    "fault", ["moved", "busy", "500-after-commit", "cut-after-commit", "500-before-commit", "cut-part", "part-503", "elsewhere"]
)
def test_what_heals_comes_to_one_commit(fault: str, uploads: UploadHub, upload: Upload) -> None:
    uploads.fault = fault
    sent = hub_upload.send(upload, silent)
    assert sent.commit == uploads.head(REPO).oid and titles(uploads).count("Add files") == 1
    assert {"m-q8_0.gguf", "job.yaml", "README.md"} == set(sent.paths)
    assert uploads.head(REPO).files["m-q8_0.gguf"] == GGUF
    assert ("another.txt" in uploads.head(REPO).files) == (fault == "moved")
    uploads.fault = ""
    assert hub_upload.send(upload, silent).paths == ()


REFUSALS = {
    "quota": ("keeps no more", "settings/billing"),
    "no-lfs": ("takes no files", "unset it"),
    "lost-blob": ("pointed to a file that does not exist", "run the same command again"),
    "page-commit": ("did not answer as a hub does", "login page"),
    "read-only": ("your token may not write there (403)", "settings/tokens"),
}


@pytest.mark.parametrize("fault", REFUSALS)
def test_a_refusal_says_what_to_do_and_leaves_the_branch_as_it_was(fault: str, uploads: UploadHub, upload: Upload) -> None:
    uploads.fault = fault
    with pytest.raises(OrchestrateError) as refusal:
        hub_upload.send(upload, silent)
    message, hint = REFUSALS[fault]
    assert message in refusal.value.message and hint in refusal.value.hint and "hf_SECRET" not in str(refusal.value.lines())
    assert titles(uploads) == ["initial commit"]


def test_a_hub_that_never_answers_is_told(uploads: UploadHub, upload: Upload, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads.fault = "silent-commit"
    uploads.over.set()  # it hangs up at once
    with pytest.raises(OrchestrateError, match="cannot be sent to") as refusal:
        hub_upload.send(upload, silent)
    assert "not sent twice" in refusal.value.hint and titles(uploads) == ["initial commit"]
    uploads.fault = ""
    assert "m-q8_0.gguf" in hub_upload.send(upload, silent).paths
    assert sum(count for line, count in uploads.seen.items() if line.startswith("PUT")) == 1


def test_what_was_committed_is_compared(uploads: UploadHub, upload: Upload) -> None:
    uploads.fault = "other-bytes"
    with pytest.raises(IntegrityError, match=r"does not hold what was sent, in commit \w{12}: m-q8_0.gguf"):
        hub_upload.send(upload, silent)
    uploads.fault = ""
    assert hub_upload.send(upload, silent).paths == ("m-q8_0.gguf",)


def test_a_file_that_is_not_what_was_checked_is_not_sent(uploads: UploadHub, upload: Upload) -> None:
    assert upload.files[0].file
    upload.files[0].file.write_bytes(GGUF[:-1] + b"x")
    with pytest.raises(IntegrityError, match="is not what its receipt says"):
        hub_upload.send(upload, silent)
    assert not any(line.startswith("PUT") for line in uploads.seen)


def test_a_repository_is_made_only_where_that_is_asked_for(uploads: UploadHub, upload: Upload) -> None:
    del uploads.repos[REPO]
    with pytest.raises(OrchestrateError, match="has no repository tester/m-GGUF") as refusal:
        hub_upload.send(upload, silent)
    assert "--create" in refusal.value.hint and REPO not in uploads.repos
    hub_upload.send(msgspec.structs.replace(upload, create=True, private=True), silent)
    assert uploads.repos[REPO].private and titles(uploads) == ["initial commit", "Add files"]


def test_nothing_private_goes_to_a_repository_that_everybody_may_see(uploads: UploadHub, upload: Upload) -> None:
    private = msgspec.structs.replace(upload, private=True, create=True)
    with pytest.raises(OrchestrateError, match="everybody may see tester/m-GGUF") as refusal:
        hub_upload.send(private, silent)
    assert "/tester/m-GGUF/settings" in refusal.value.hint and titles(uploads) == ["initial commit"]
    assert not any(line.startswith("PUT") for line in uploads.seen)
    uploads.repos[REPO].private = True
    assert len(hub_upload.send(private, silent).paths) == 3


def test_a_branch_is_made_beside_main(uploads: UploadHub, upload: Upload) -> None:
    place = msgspec.structs.replace(upload.place, revision="next")
    with pytest.raises(OrchestrateError, match="with a branch next"):
        hub_upload.send(msgspec.structs.replace(upload, place=place), silent)
    hub_upload.send(msgspec.structs.replace(upload, place=place, create=True), silent)
    assert titles(uploads) == ["initial commit"]
    assert [commit.title for commit in uploads.commits(REPO, "next")] == ["initial commit", "Add files"]


def test_the_card_is_made_of_what_is_there(uploads: UploadHub, upload: Upload) -> None:
    uploads.seed(REPO, {"README.md": b"# mine\r\n"})
    sent = hub_upload.send(msgspec.structs.replace(upload, card=lambda text, paths: f"{text}\n# ours\n"), silent)
    assert "README.md" in sent.paths and uploads.head(REPO).files["README.md"] == b"# mine\r\n\n# ours\n"
    assert hub_upload.send(msgspec.structs.replace(upload, card=None), silent).paths == ()


def test_a_readme_that_is_no_utf8_is_left_alone(uploads: UploadHub, upload: Upload) -> None:
    uploads.seed(REPO, {"README.md": "# für mich".encode("latin-1")})
    with pytest.raises(OrchestrateError, match="README.md of tester/m-GGUF is not UTF-8") as refusal:
        hub_upload.send(upload, silent)
    assert "card: none" in refusal.value.hint and titles(uploads) == ["initial commit", "Upload files"]
    assert hub_upload.send(msgspec.structs.replace(upload, card=None), silent).paths == ("m-q8_0.gguf", "job.yaml")


def test_a_readme_that_is_not_what_the_hub_lists_is_not_added_to(
    uploads: UploadHub, upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads.seed(REPO, {"README.md": b"# mine\n"})
    monkeypatch.setattr(UploadRoute, "download", lambda route, *words: route.reply(200, b"# other\n"))
    with pytest.raises(IntegrityError, match="sent another README.md of tester/m-GGUF than it lists"):
        hub_upload.send(upload, silent)
    assert uploads.head(REPO).files["README.md"] == b"# mine\n"


def test_a_private_branch_is_not_begun_in_a_public_repository(uploads: UploadHub, upload: Upload) -> None:
    place = msgspec.structs.replace(upload.place, revision="next")
    with pytest.raises(OrchestrateError, match="everybody may see tester/m-GGUF"):
        hub_upload.send(msgspec.structs.replace(upload, place=place, create=True, private=True), silent)
    assert list(uploads.repos[REPO].branches) == ["main"]


def test_a_card_that_the_hub_does_not_take_is_told(uploads: UploadHub, upload: Upload) -> None:
    with pytest.raises(OrchestrateError, match="does not take the model card of tester/m-GGUF"):
        hub_upload.send(msgspec.structs.replace(upload, card=lambda text, paths: "---\nlicense: [\n---\n"), silent)
    assert titles(uploads) == ["initial commit"]


class Session:
    """Stands for the client of the hub's newer store, which no server here answers: it takes files, and says how far it is."""

    def __init__(self, uploads: UploadHub) -> None:
        self.uploads = uploads
        self.report: Callable[..., None] = lambda whole, files: None

    def new_upload_commit(self, progress_callback: Callable[..., None], **words: Any) -> Session:
        self.report = progress_callback
        return self

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def start_upload_file(self, path: str, sha256: str) -> None:
        self.uploads.blobs[sha256] = Path(path).read_bytes()
        for part in (0.5, 1.0):
            self.report(SimpleNamespace(total_bytes_completed=int(len(self.uploads.blobs[sha256]) * part)), {})


@pytest.mark.parametrize("xet", ["", "http://127.0.0.1:9"])
def test_the_newer_store_is_used_only_where_a_hub_has_one(
    xet: str, uploads: UploadHub, upload: Upload, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    uploads.xet = xet
    monkeypatch.setattr("huggingface_hub.utils._xet.get_xet_session", lambda: Session(uploads))
    lines: list[str] = []
    sent = hub_upload.send(upload, lines.append)
    assert sent.paths and uploads.head(REPO).files["m-q8_0.gguf"] == GGUF
    assert (not xet) == constants.HF_HUB_DISABLE_XET == any(line.startswith("PUT") for line in uploads.seen)
    assert "sending 3 files, 95% of 512.0 kB" in lines and capfd.readouterr() == ("", "")


def test_a_file_over_the_limit_is_told_before_the_first_byte(
    uploads: UploadHub, upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "LARGEST_BYTES", 100_000)
    with pytest.raises(OrchestrateError, match="m-q8_0.gguf has 512.0 kB") as refusal:
        hub_upload.send(upload, silent)
    assert "--split-max-size" in refusal.value.hint and not any(line.startswith("PUT") for line in uploads.seen)


@pytest.fixture
def stop() -> Iterator[Callable[[str], None]]:
    """Ends what is at work as soon as it says so."""

    def at(word: str) -> Callable[[str], None]:
        return lambda line: cancel.STOP.set() if word in line else None

    yield at
    cancel.STOP.clear()


@pytest.mark.parametrize("word", ["hashing", "sending"])
def test_a_signal_ends_it(word: str, uploads: UploadHub, upload: Upload, stop: Callable[[str], Any]) -> None:
    with pytest.raises(BaseException) as end:
        hub_upload.send(upload, stop(word))
    assert "Stopped" in repr(end.value) or "signal" in str(end.value).lower()
    assert titles(uploads) == ["initial commit"]
    cancel.STOP.clear()
    assert len(hub_upload.send(upload, silent).paths) == 3


def test_two_that_publish_the_same_make_one_commit(uploads: UploadHub, upload: Upload) -> None:
    results: list[hub_upload.Sent] = []
    threads = [threading.Thread(target=lambda: results.append(hub_upload.send(upload, silent))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert titles(uploads).count("Add files") == 1 and len(results) == 2
    assert {sent.commit for sent in results} == {uploads.head(REPO).oid}
