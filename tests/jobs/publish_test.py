"""From sources on the hub to repositories there: what goes, what does not, and what is left when it is killed in the middle."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from huggingface_hub import constants

from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt
from tests.support import ROOT
from tests.support.answer import Answer
from tests.support.stage.uploads import UploadHub

Orchestrate = Callable[..., Answer]
Job = Callable[..., Path]
QUICK = {"binaries": {"backend": "none"}}
CARD = b"---\nlicense: apache-2.0\nlanguage:\n- en\n- no\npipeline_tag: text-generation\n---\n# Tiny\n"
REPO = "tester/tiny-GGUF"


@pytest.fixture
def hub(uploads: UploadHub, data: Path) -> UploadHub:
    """The hub with a model and an adapter to begin with."""
    uploads.seed("org/tiny", {path.name: path.read_bytes() for path in (data / "tiny-llama").iterdir()} | {"README.md": CARD})
    adapter = {path.name: path.read_bytes() for path in (data / "lora-a").iterdir()}
    uploads.seed("org/bot", adapter | {"README.md": b"---\nlicense: mit\nbase_model: org/tiny\n---\n# Bot\n"})
    return uploads


@pytest.fixture
def finished(hub: UploadHub, orchestrate: Orchestrate, job: Job, world: Path, once: Callable[..., None]) -> Path:
    """A job that has made its outputs: a model in two types, and an adapter."""

    def make() -> None:
        model = {"source": "org/tiny", "outtype": ["f16", "q8_0"], "loras": "org/bot"}
        answer = orchestrate("run", job(model, publish="tester/{name}-GGUF", **QUICK))
        assert answer.code == 0, answer.err

    once("finished", make)
    return world / "job.yaml"


def names(hub: UploadHub, repo: str = REPO) -> set[str]:
    return {name for name in hub.head(repo).files if name != ".gitattributes"}


def test_outputs_go_there_with_all_that_proves_them(
    hub: UploadHub, finished: Path, orchestrate: Orchestrate, world: Path
) -> None:
    answer = orchestrate("publish", finished, "--create", "--json")
    assert answer.code == 0, answer.err
    told = {line["repo"]: line for line in json.loads(answer.out)["publish"]}
    own = "tester/tiny-bot-LoRA-GGUF"
    assert set(told) == {REPO, own} and all(told[repo]["commit"] == hub.head(repo).oid for repo in told)
    beside = {"job.yaml", "job.lock.yaml", "README.md"}
    files = {f"tiny-{type_}.gguf{suffix}" for type_ in ("f16", "q8_0") for suffix in ("", ".receipt.json")}
    assert names(hub) == files | beside
    assert names(hub, own) == {"tiny-bot-lora-f16.gguf", "tiny-bot-lora-f16.gguf.receipt.json"} | beside
    for name in files:
        assert hub.head(REPO).files[name] == (world / "dist" / name).read_bytes()
    card = ModelCard(hub.head(REPO).files["README.md"].decode())
    receipt = pipeline_receipt.read(world / "dist" / "tiny-f16.gguf")
    assert receipt and receipt.files[0].sha256 in card.text and card.data.base_model == "org/tiny"
    assert card.data.language == ["en", "no"] and card.data.license == "apache-2.0"
    assert card.data.to_dict()["base_model_relation"] == "quantized"
    adapter = ModelCard(hub.head(own).files["README.md"].decode()).data.to_dict()
    assert adapter["base_model_relation"] == "adapter" and adapter["base_model"] == "org/tiny"
    assert not hub.strayed and "hf_SECRET" not in str(hub.head(REPO).files) + answer.err + answer.out


def test_a_second_time_nothing_is_sent_and_nobody_asks_for_create(
    hub: UploadHub, finished: Path, orchestrate: Orchestrate
) -> None:
    assert orchestrate("publish", finished, "--create").code == 0
    written = {line: count for line, count in hub.seen.items() if line.startswith(("POST", "PUT"))}
    answer = orchestrate("publish", finished, "--json")
    assert answer.code == 0 and {line["status"] for line in json.loads(answer.out)["publish"]} == {"current"}
    assert {line: count for line, count in hub.seen.items() if line.startswith(("POST", "PUT"))} == written
    assert f"{REPO}  commit {hub.head(REPO).oid[:12]}, current" in orchestrate("publish", finished).out


def test_run_makes_and_publishes_at_once(hub: UploadHub, orchestrate: Orchestrate, job: Job) -> None:
    merged = {"source": "org/tiny", "merge": "org/bot", "name": "tiny-bot", "outtype": "q8_0"}
    file = job(merged | {"publish": {"repo": REPO, "private": True, "card": "zh"}}, **QUICK)
    answer = orchestrate("run", file, "--publish", "--create", "--json")
    assert answer.code == 0, answer.err
    assert [line["status"] for line in json.loads(answer.out)["publish"]] == ["published"] and hub.repos[REPO].private
    card = ModelCard(hub.head(REPO).files["README.md"].decode())
    front = card.data.to_dict()
    assert front["base_model_relation"] == "merge" and front["base_model"] == ["org/tiny", "org/bot"]
    assert "适配器" in card.text
    again = orchestrate("run", file, "--publish", "--json")
    assert [line["status"] for line in json.loads(again.out)["publish"]] == ["current"]


def test_what_is_downloaded_from_there_is_made_again_by_the_same_bytes(
    hub: UploadHub, finished: Path, orchestrate: Orchestrate, world: Path
) -> None:
    assert orchestrate("publish", finished, "--create").code == 0
    place = world / "elsewhere"
    place.mkdir()
    for name in ("tiny-q8_0.gguf", "tiny-q8_0.gguf.receipt.json", "job.yaml", "job.lock.yaml"):
        (place / name).write_bytes(hub.head(REPO).files[name])
    assert orchestrate("verify", place / "tiny-q8_0.gguf").code == 0
    answer = orchestrate("reproduce", place / "tiny-q8_0.gguf.receipt.json", "--job", place / "job.yaml")
    assert answer.code == 0 and "identical" in answer.out, answer.err


def test_a_dry_run_sends_nothing_and_writes_the_card(
    hub: UploadHub, finished: Path, orchestrate: Orchestrate, world: Path
) -> None:
    answer = orchestrate("publish", finished, "--dry-run")
    assert answer.code == 0 and "tiny-f16.gguf" in answer.out and "job.lock.yaml" in answer.out
    assert not any(line.startswith(("POST", "PUT")) for line in hub.seen) and REPO not in hub.repos
    card = world / "dist" / "tiny-GGUF-card.md"
    assert ModelCard(card.read_text(encoding="utf-8")).data.base_model == "org/tiny"
    document = json.loads(orchestrate("publish", finished, "--dry-run", "--json").out)
    assert [entry["repo"] for entry in document] == [REPO, "tester/tiny-bot-LoRA-GGUF"]
    card.write_text("my own words")
    refused = orchestrate("publish", finished, "--dry-run")
    assert refused.code == 2 and "did not write it" in refused.err and card.read_text() == "my own words"


def test_a_readme_that_is_there_is_kept(hub: UploadHub, finished: Path, orchestrate: Orchestrate) -> None:
    own = b"---\nlicense: llama3.2\ntags: [mine]\n---\n# My words\r\n\nstay.\n"
    hub.seed(REPO, {"README.md": own, "notes.txt": b"mine"})
    assert orchestrate("publish", finished, "--create").code == 0
    text = hub.head(REPO).files["README.md"]
    assert b"# My words\r\n\nstay.\n" in text and hub.head(REPO).files["notes.txt"] == b"mine"
    data = ModelCard(text.decode()).data
    assert data.license == "llama3.2" and data.tags == ["mine"] and data.base_model == "org/tiny"


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a file that is gone": (lambda dist: (dist / "tiny-q8_0.gguf").unlink(), "is not what the job makes now"),
    "a receipt that is gone": (lambda dist: (dist / "tiny-q8_0.gguf.receipt.json").unlink(), "has no receipt"),
    "a file that was changed": (lambda dist: (dist / "tiny-q8_0.gguf").write_bytes(b"GGUF"), "is not what the job makes now"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_what_is_not_proven_is_not_published(
    name: str, hub: UploadHub, finished: Path, orchestrate: Orchestrate, world: Path
) -> None:
    spoil, words = SPOILED[name]
    spoil(world / "dist")
    answer = orchestrate("publish", finished, "--create")
    assert answer.code == 2 and words in answer.err and "orchestrate run" in answer.err and REPO not in hub.repos


def test_bytes_that_changed_unseen_are_not_published(
    hub: UploadHub, finished: Path, orchestrate: Orchestrate, world: Path
) -> None:
    path = world / "dist" / "tiny-q8_0.gguf"
    times, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 255
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    answer = orchestrate("publish", finished, "--create")
    assert answer.code == 1 and "is not what its receipt says" in answer.err
    assert [commit.title for commit in hub.commits(REPO)] == ["initial commit"]


@pytest.mark.parametrize("verify", ["load", "logits"])
def test_a_deeper_check_that_the_job_asks_for_must_have_been_passed(
    verify: str, finished: Path, hub: UploadHub, orchestrate: Orchestrate, job: Job
) -> None:
    model = {"source": "org/tiny", "outtype": ["f16", "q8_0"], "verify": "content"}
    assert orchestrate("run", job(model, publish=REPO, **QUICK)).code == 0
    text = finished.read_text()
    finished.write_text(text.replace("verify: content", "verify: structure"))
    assert orchestrate("publish", finished, "--dry-run").code == 0
    receipt = next(Path("dist").glob("tiny-f16.gguf.receipt.json"))
    receipt.write_text(receipt.read_text().replace('    "content"', f'    "other-{verify}"'))
    finished.write_text(text)
    answer = orchestrate("publish", finished, "--create")
    assert answer.code == 2 and "has not passed the check content" in answer.err


SOURCES: dict[str, tuple[dict[str, Any], str]] = {
    "gated": ({"gated": "manual"}, "org/tiny is gated"),
    "private": ({"private": True}, "org/tiny is private"),
    "no derivatives": ({"license": "cc-by-nc-nd-4.0"}, "forbids to pass on"),
    "no derivatives, of two": ({"license": "[mit, CC-BY-ND-4.0]"}, "(cc-by-nd-4.0) forbids"),
    "no derivatives, by name": ({"license": "other\nlicense_name: CC BY-NC-ND 4.0"}, "(cc-by-nc-nd-4.0) forbids"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_what_others_may_not_want_passed_on_takes_a_word(name: str, hub: UploadHub, orchestrate: Orchestrate, job: Job) -> None:
    how, words = SOURCES[name]
    if licence := how.get("license"):
        hub.seed("org/tiny", hub.head("org/tiny").files | {"README.md": CARD.replace(b"apache-2.0", licence.encode())})
    file = job({"source": "org/tiny", "outtype": "q8_0"}, publish=REPO, **QUICK)
    assert orchestrate("run", file).code == 0
    for key in ("gated", "private"):
        setattr(hub.repos["org/tiny"], key, how.get(key, False))
    answer = orchestrate("publish", file, "--create")
    assert answer.code == 1 and words in answer.err and "--yes" in answer.err and REPO not in hub.repos
    assert orchestrate("publish", file, "--create", "--yes").code == 0 and "tiny-q8_0.gguf" in names(hub)


def test_a_source_that_is_gone_since_takes_a_word(hub: UploadHub, finished: Path, orchestrate: Orchestrate) -> None:
    assert orchestrate("publish", finished, "--dry-run").code == 0  # its card is in the cache
    del hub.repos["org/tiny"]
    answer = orchestrate("publish", finished, "--create")
    assert answer.code == 1 and "org/tiny is there no more, or not for you" in answer.err and "--yes" in answer.err
    assert REPO not in hub.repos
    assert orchestrate("publish", finished, "--create", "--yes").code == 0 and "tiny-q8_0.gguf" in names(hub)


def test_a_mirror_gets_no_token_and_nothing_goes_without_one(
    hub: UploadHub, finished: Path, orchestrate: Orchestrate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    answer = orchestrate("publish", finished)
    assert answer.code == 2 and "without a token" in answer.err and "hf auth login" in answer.err
    monkeypatch.setenv("HF_TOKEN", "hf_SECRETSECRET")
    monkeypatch.delenv("ORCHESTRATE_TOKEN_HOSTS")
    seen = len(hub.tokens)
    answer = orchestrate("publish", finished)
    assert answer.code == 2 and "HF_ENDPOINT names a mirror" in answer.err and len(hub.tokens) == seen
    assert orchestrate("run", finished, "--publish").code == 2
    assert orchestrate("run", finished, "--publish", "--offline").code != 0
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    answer = orchestrate("publish", finished)
    assert answer.code == 2 and "while HF_HUB_OFFLINE is set" in answer.err and len(hub.tokens) == seen


def test_jobs_without_a_place_to_publish_to_say_so(hub: UploadHub, orchestrate: Orchestrate, job: Job) -> None:
    file = job({"source": "org/tiny", "outtype": "q8_0"}, **QUICK)
    answer = orchestrate("run", file, "--publish")
    assert answer.code == 2 and "does not say where its outputs are published" in answer.err
    assert orchestrate("run", file, "--create").code == 2
    answer = orchestrate("publish", job({"source": "org/tiny", "outtype": "q8_0"}, publish=REPO, **QUICK))
    assert answer.code == 2 and "has no lock" in answer.err
    answer = orchestrate("publish", job({"source": "org/tiny", "outtype": "q8_0"}, **QUICK), "--dry-run")
    assert answer.code == 2 and "does not say where its outputs are published" in answer.err
    answer = orchestrate("run", job({"source": "org/tiny"}, **QUICK), "--scheduler", "tcp://127.0.0.1:9", "--jobs", "2")
    assert answer.code == 2 and "--jobs and --memory are for this machine" in answer.err


def test_ollama_is_told_what_the_file_does_not_say(hub: UploadHub, orchestrate: Orchestrate, job: Job, world: Path) -> None:
    generation = {"temperature": 0.6, "top_k": 20, "eos_token_id": [2, 1]}
    hub.seed("org/tiny", hub.head("org/tiny").files | {"generation_config.json": json.dumps(generation).encode()})
    (world / "system.txt").write_text("You are terse.\n")
    file = job(
        {"source": "org/tiny", "outtype": "q8_0", "loras": "org/bot"},
        publish={"repo": REPO, "system": "system.txt", "adapters": "together"},
        **QUICK,
    )
    assert orchestrate("run", file, "--publish", "--create").code == 0
    files = hub.head(REPO).files
    params = json.loads(files["params"])
    assert params["temperature"] == 0.6 and params["top_k"] == 20 and "<s>" in params["stop"]
    assert files["system"] == b"You are terse.\n" and "template" not in files
    assert "tiny-bot-lora-f16.gguf" in files and "tester/tiny-bot-LoRA-GGUF" not in hub.repos


def test_branches_of_one_repository_are_published_each(hub: UploadHub, orchestrate: Orchestrate, job: Job, world: Path) -> None:
    models = [
        {"source": "org/tiny", "outtype": "q8_0", "name": "a", "outfile": "sub/{name} {type}.gguf"},
        {"source": "org/tiny", "outtype": "q8_0", "name": "模型", "publish": {"repo": REPO, "revision": "feat/x"}},
        {"source": "org/tiny", "outtype": "q8_0", "name": "c", "publish": "org/tiny-GGUF"},
    ]
    file = job(*models, publish=REPO, **QUICK)
    answer = orchestrate("run", file, "--publish", "--create")
    assert answer.code == 0, answer.err
    assert f"{REPO}  branch feat/x  commit {hub.head(REPO, 'feat/x').oid[:12]}" in answer.out
    assert "sub/a q8_0.gguf" in names(hub) and "模型-q8_0.gguf" not in names(hub)
    assert "模型-q8_0.gguf" in hub.head(REPO, "feat/x").files and "c-q8_0.gguf" in names(hub, "org/tiny-GGUF")
    cards = {Path(item["card"]) for item in json.loads(orchestrate("publish", file, "--dry-run", "--json").out)}
    assert {path.name for path in cards} == {
        f"{name}-card.md" for name in ("tester-tiny-GGUF", "tester-tiny-GGUF-feat-x", "org-tiny-GGUF")
    }
    assert len({path.read_text(encoding="utf-8") for path in cards}) == 3


def test_what_a_repository_holds_besides_is_kept_and_never_run_in_place_of_what_is_proven(
    hub: UploadHub, finished: Path, orchestrate: Orchestrate
) -> None:
    hub.seed(REPO, {"old-f16.gguf": b"GGUF\0"})
    answer = orchestrate("publish", finished, "--create")
    assert answer.code == 0 and f"{REPO} also holds old-f16.gguf" in answer.err
    card = hub.head(REPO).files["README.md"].decode()
    assert f"{REPO}:F16" not in card and "-hff tiny-" in card and hub.head(REPO).files["old-f16.gguf"] == b"GGUF\0"


SECRETS = ("https://me:word@127.0.0.1/x.whl", "https://hf_x@127.0.0.1/x.whl", "hf_" + "a1" * 17, "ghp_" + "a1" * 18)


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("place", ["job.yaml", "system.txt"])
def test_a_secret_is_not_published(
    secret: str, place: str, hub: UploadHub, finished: Path, orchestrate: Orchestrate, world: Path
) -> None:
    (world / "system.txt").write_text("You are terse. See ssh://git@127.0.0.1/x\n")
    text = finished.read_text().replace("publish: tester/{name}-GGUF", f"publish: {{repo: {REPO}, system: system.txt}}")
    finished.write_text(text)
    assert orchestrate("publish", finished, "--dry-run").code == 0
    with (world / place).open("a") as file:
        file.write(f"# {secret}\n")
    answer = orchestrate("publish", finished, "--create")
    assert answer.code == 2 and f"{place} holds a login or a token" in answer.err and secret not in answer.err
    assert REPO not in hub.repos


def test_places_of_this_machine_in_the_job_are_told(hub: UploadHub, orchestrate: Orchestrate, job: Job, world: Path) -> None:
    file = job({"source": "org/tiny", "outtype": "q8_0"}, publish=REPO, output=str(world / "out"), **QUICK)
    answer = orchestrate("run", file, "--publish", "--create")
    assert answer.code == 0 and f"names places on this machine: {world / 'out'}" in answer.err


def test_no_two_files_have_one_name_in_the_repository(hub: UploadHub, orchestrate: Orchestrate, job: Job) -> None:
    file = job({"source": "org/tiny", "outtype": "q8_0"}, name="readme.md", publish={"repo": REPO, "card": "none"}, **QUICK)
    assert orchestrate("run", file, "--publish", "--create").code == 0 and "readme.md" in names(hub)
    file = job({"source": "org/tiny", "outtype": "q8_0"}, name="readme.md", publish=REPO, **QUICK)
    assert orchestrate("run", file).code == 0
    answer = orchestrate("publish", file)
    assert answer.code == 2 and "two files would be called readme.md" in answer.err


@pytest.mark.slow
def test_what_was_measured_goes_there_and_into_the_card(
    hub: UploadHub, orchestrate: Orchestrate, job: Job, built: dict[str, Any], world: Path
) -> None:
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs", "home", "at", "night"]
    (world / "words.txt").write_text("\n".join(" ".join(random.Random(line).choices(words, k=20)) for line in range(120)))
    model = {"source": "org/tiny", "quantize": ["Q8_0", "Q4_K_M"], "args": "--split-max-size 5M"}
    model |= {"imatrix": {"text": "words.txt", "chunks": 1}, "quality": {"text": "words.txt", "chunks": 2}}
    file = job(model | {"publish": {"repo": REPO, "files": ["Q8_0", "Q4_K_M"]}}, binaries=built)
    answer = orchestrate("run", file, "--publish", "--create", "--json")
    assert answer.code == 0, answer.err
    files, document = hub.head(REPO).files, json.loads(answer.out)
    assert {"tiny-quality.json", "tiny-quality.svg"} < set(files) and not any("bf16" in name for name in files)
    assert len([name for name in files if "Q8_0-0000" in name and name.endswith(".gguf")]) > 1, "it is split"
    receipt = json.loads(files["tiny-Q4_K_M.gguf.receipt.json"])
    matrix = next(item for item in receipt["inputs"] if "imatrix" in item["name"])
    assert hashlib.sha256(files[matrix["name"]]).hexdigest() == matrix["sha256"]
    card = files["README.md"].decode()
    row = next(row for row in document["quality"][0]["types"] if row["type"] == "Q4_K_M")
    assert f"{row['ppl']:.4f}"[:5] in card and "tiny-quality.svg" in card and "words.txt" in card
    assert "imatrix" in ModelCard(card).data.tags


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_killed_at_any_moment_it_ends_with_one_whole_commit(
    hub: UploadHub, finished: Path, orchestrate: Orchestrate, world: Path
) -> None:
    def begin() -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "llamacpp_orchestrator", "publish", finished, "--create"]
        return subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)

    began = time.monotonic()
    assert begin().wait() == 0
    whole = time.monotonic() - began
    for moment in range(20):
        for repo in (REPO, "tester/tiny-bot-LoRA-GGUF"):
            hub.repos.pop(repo, None)
        hub.blobs.clear()
        process = begin()
        time.sleep(whole * (moment + 1) / 20)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert orchestrate("publish", finished, "--create").code == 0
        for repo in (REPO, "tester/tiny-bot-LoRA-GGUF"):
            assert [commit.title.split()[0] for commit in hub.commits(repo)] == ["initial", "Add"], moment
        for name in ("tiny-f16.gguf", "tiny-q8_0.gguf"):
            digest = hashlib.sha256((world / "dist" / name).read_bytes()).hexdigest()
            assert hashlib.sha256(hub.head(REPO).files[name]).hexdigest() == digest
