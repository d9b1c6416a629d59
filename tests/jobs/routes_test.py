"""Every route in: git over smart HTTP, the release archives and the hub, from servers of our own that serve real content."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.pipeline import receipt as pipeline_receipt
from llamacpp_orchestrator.source import tree as source_tree
from tests.support import TAG
from tests.support.answer import Answer
from tests.support.programs import NEWER
from tests.support.programs import TOOL
from tests.support.stage.github import GitHub
from tests.support.stage.github import git
from tests.support.stage.github import release
from tests.support.stage.hub import Hub


@pytest.mark.parametrize("filters", ["true", "false"])
def test_git_gives_the_same_tree_as_the_package(
    filters: str,
    github: GitHub,
    orchestrate: Callable[..., Answer],
    job: Callable[..., Path],
    data: Path,
    world: Path,
    shared_cache: Path,
) -> None:
    place = github.root / "ggml-org" / "llama.cpp"
    git("config", "uploadpack.allowFilter", filters, at=place)
    commit = git("rev-parse", "HEAD", at=place).strip()
    shutil.rmtree(shared_cache / "source" / commit, ignore_errors=True)
    answer = orchestrate("run", job({"source": str(data / "tiny-llama"), "outtype": "f16"}))
    assert answer.code == 0, answer.err
    tree = shared_cache / "source" / commit
    assert source_tree.tree_digest(tree) == source_tree.tree_digest(shared_cache / "source" / f"package-{TAG}")
    assert not (tree / ".git").exists() and not (tree / "src").exists()
    assert f"commit: {commit}" in (world / "job.lock.yaml").read_text()
    seen = len(github.seen)
    assert orchestrate("run", job({"source": str(data / "tiny-llama"), "outtype": "f16"}), "--locked", "--force").code == 0
    assert len(github.seen) == seen, "with a lock and a full cache nothing is asked"


@pytest.mark.slow
def test_a_commit_is_as_good_as_a_tag_and_a_missing_tag_names_its_neighbours(
    github: GitHub, orchestrate: Callable[..., Answer], job: Callable[..., Path], data: Path
) -> None:
    commit = git("rev-parse", "HEAD", at=github.root / "ggml-org" / "llama.cpp").strip()
    model = {"source": str(data / "tiny-llama"), "outtype": "f16"}
    assert orchestrate("run", job(model, llama_cpp={"tag": commit}, output="by-commit")).code == 0
    answer = orchestrate("run", job(model, llama_cpp={"tag": "b11999"}, name="other.yaml"))
    assert answer.code == 1 and "b11999" in answer.err and TAG in answer.err


def test_the_package_route_names_the_tags_that_it_has(
    orchestrate: Callable[..., Answer], job: Callable[..., Path], data: Path
) -> None:
    answer = orchestrate("run", job(str(data / "tiny-llama"), llama_cpp={"tag": "b3878"}))
    assert answer.code == 1 and "nearest: b9760" in answer.err and "git" in answer.err


@pytest.mark.skipif(os.name == "nt", reason="the stand-in tool is a shell script")
@pytest.mark.parametrize("limited", [False, True])
def test_quantizing_with_a_released_tool(
    limited: bool,
    linux: None,
    github: GitHub,
    orchestrate: Callable[..., Answer],
    job: Callable[..., Path],
    data: Path,
    world: Path,
    shared_cache: Path,
) -> None:
    github.archive, github.limited = release(TOOL + f"# {limited}\n"), limited
    file = job(
        {"source": str(data / "tiny-llama"), "outtype": "bf16", "quantize": ["Q4_K_M", "Q8_0"]}, binaries={"backend": "cpu"}
    )
    made = orchestrate("run", file, "--json")
    assert made.code == 0, made.err
    assert sorted((output["kind"], output["type"]) for output in made.json()["outputs"]) == [
        ("model", "bf16"),
        ("quantized", "Q4_K_M"),
        ("quantized", "Q8_0"),
    ]
    again = orchestrate("run", file, "--json").json()
    assert {output["status"] for output in again["outputs"]} == {"current"}
    (world / "dist" / "tiny-llama-Q8_0.gguf").unlink()
    steps = {step["name"]: step["status"] for step in orchestrate("run", file, "--json").json()["steps"]}
    assert steps["quantize tiny-llama-Q8_0.gguf"] == "done" and steps["convert tiny-llama-bf16.gguf"] == "current"
    assert "version: 11434" in orchestrate("exec", file, "--", "llama-cli", "--version").out
    assert orchestrate("setup", file).code == 0
    failed = orchestrate(
        "run",
        job({"source": str(data / "tiny-llama"), "quantize": ["Q9"]}, name="q.yaml", output="q", binaries={"backend": "cpu"}),
    )
    assert failed.code == 1 and "does not know the type" in failed.err and not list((world / "q").glob("*Q9*"))


@pytest.mark.skipif(os.name == "nt", reason="the stand-in tool is a shell script")
def test_deep_verification_knows_the_released_programs_and_a_receipt_names_its_inputs(
    linux: None,
    github: GitHub,
    hub: Hub,
    orchestrate: Callable[..., Answer],
    job: Callable[..., Path],
    shared_cache: Path,
    world: Path,
) -> None:
    github.archive = release(TOOL + "# for a deep look\n")
    file = job({"source": "org/m", "name": "m", "quantize": ["Q8_0"]}, binaries={"backend": "cpu"})
    assert orchestrate("run", file).code == 0
    receipt = pipeline_receipt.read(world / "dist" / "m-bf16.gguf")
    assert receipt and {each.name: each.sha256 or each.digest for each in receipt.inputs} == {
        f"m/{name}": hashlib.sha256(hub.files[name]).hexdigest()
        for name in ("config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.model", "tokenizer_config.json")
    }
    assert orchestrate("verify", world / "dist", "--deep").code == 0
    tool = next(path for path in (shared_cache / "binaries").rglob("llama-quantize") if "deep look" in path.read_text())
    tool.write_text(tool.read_text() + "# changed\n")
    answer = orchestrate("verify", world / "dist", "--deep")
    assert answer.code == 1 and "were changed after they were unpacked" in answer.out


@pytest.mark.skipif(os.name == "nt", reason="the stand-in tool is a shell script")
def test_a_locked_run_wants_a_digest_for_what_it_would_use(
    linux: None, github: GitHub, orchestrate: Callable[..., Answer], job: Callable[..., Path], data: Path
) -> None:
    github.archive, github.digests = release(TOOL + "# never published\n"), False
    file = job({"source": str(data / "tiny-llama"), "quantize": ["Q8_0"]}, binaries={"backend": "cpu"})
    assert orchestrate("lock", file).code == 0
    answer = orchestrate("run", file, "--locked")
    assert answer.code == 3 and "no digest was published" in answer.err
    assert orchestrate("run", file).code == 0 and orchestrate("run", file, "--locked").code == 0


@pytest.mark.skipif(os.name == "nt", reason="the stand-in tool is a shell script")
def test_outputs_are_loaded_where_the_job_says_so(
    linux: None, github: GitHub, orchestrate: Callable[..., Answer], job: Callable[..., Path], data: Path, world: Path
) -> None:
    # Loads only what is there: an adapter before its base would fail.
    github.archive = release(TOOL.replace("\n", '\n[ "$1" = -m ] && { test -f "$2" && exit 0; exit 1; }\n', 1))
    model = {"source": str(data / "tiny-llama"), "outtype": "f16", "loras": [str(data / "lora-a")], "verify": "load"}
    file = job(model, binaries={"backend": "cpu"})
    made = orchestrate("run", file)
    assert made.code == 0, made.err
    for name in ("tiny-llama-f16.gguf", "tiny-llama-lora-a-lora-f16.gguf"):
        receipt = pipeline_receipt.read(world / "dist" / name)
        assert receipt and receipt.levels == ("structure", "content", "load")
    assert orchestrate("verify", world / "dist", "--level", "load").code == 0


@pytest.mark.skipif(os.name == "nt", reason="the stand-in tool is a shell script")
def test_a_tool_that_cannot_start_and_a_backend_that_is_not_there(
    linux: None, github: GitHub, orchestrate: Callable[..., Answer], job: Callable[..., Path], data: Path
) -> None:
    github.archive = release(NEWER)
    asked = {"source": str(data / "tiny-llama"), "quantize": ["Q8_0"]}
    answer = orchestrate("run", job(asked, binaries={"backend": "cpu"}))
    assert answer.code == 1 and "GLIBC_2.99" in answer.err
    answer = orchestrate("run", job(asked, binaries={"backend": "vulkan"}, name="v.yaml"))
    assert answer.code in (1, 2) and "vulkan" in answer.err and "hint:" in answer.err
    answer = orchestrate("run", job(asked, binaries={"backend": "none"}, name="n.yaml"))
    assert answer.code in (1, 2) and "binaries" in answer.err


@pytest.mark.skipif(os.name == "nt", reason="the stand-in tool is a shell script")
def test_an_archive_without_a_published_digest_is_pinned_by_its_first_download(
    linux: None, github: GitHub, orchestrate: Callable[..., Answer], job: Callable[..., Path], data: Path, shared_cache: Path
) -> None:
    github.archive, github.digests = release(TOOL + "# first\n"), False
    file = job({"source": str(data / "tiny-llama"), "quantize": ["Q8_0"]}, binaries={"backend": "cpu"})
    assert orchestrate("lock", file).code == 0
    lock = file.with_name("job.lock.yaml")
    assert not [path for path in github.seen if "/download/" in path], "a lock alone downloads nothing"
    before = lock_file.read(lock)
    made = orchestrate("run", file)
    assert made.code == 0, made.err
    digest = hashlib.sha256(github.archive).hexdigest()
    assert f"no published digest; locked as downloaded now: sha256 {digest}" in made.err
    after = lock_file.read(lock)
    assert before and after and [asset.sha256 for asset in before.assets] == [None, None]
    assert [asset.sha256 for asset in after.assets] == [digest, None]
    assert all(asset.url.startswith("https://github.com/") for asset in after.assets), "no mirror stands in a lock"
    assert sum("/download/" in path for path in github.seen) == 1, "downloaded once"

    # Another machine, and the archive was replaced meanwhile.
    shutil.rmtree(shared_cache / "binaries")
    github.archive = release(TOOL + "# other\n")
    moved = orchestrate("run", file, "--locked", "--force")
    assert moved.code == 1 and digest in moved.err and hashlib.sha256(github.archive).hexdigest() in moved.err


@pytest.mark.skipif(os.name == "nt", reason="the stand-in tool is a shell script")
def test_a_warm_cache_and_a_fitting_lock_ask_no_server(
    linux: None,
    github: GitHub,
    hub: Hub,
    orchestrate: Callable[..., Answer],
    job: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    github.archive = release(TOOL)
    file = job({"source": "org/m", "name": "m", "quantize": ["Q8_0"]}, binaries={"backend": "cpu"})
    first = orchestrate("run", file, "--json")
    assert first.code == 0, first.err
    github.seen.clear()
    hub.seen.clear()
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    again = orchestrate("run", file, "--force", "--locked", "--json")
    assert again.code == 0, again.err
    assert [one["sha256"] for one in again.json()["outputs"]] == [one["sha256"] for one in first.json()["outputs"]]
    assert not github.seen and not hub.seen


def test_a_moved_tag_is_an_error_with_both_commits(
    github: GitHub,
    orchestrate: Callable[..., Answer],
    job: Callable[..., Path],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = job({"source": str(data / "tiny-llama"), "outtype": "f16"}, name="moved.yaml")
    assert orchestrate("lock", file).code == 0
    before = lock_file.read(file.with_name("moved.lock.yaml"))
    place = github.root / "ggml-org" / "llama.cpp"
    old = git("rev-parse", TAG, at=place).strip()
    try:
        (place / "convert_hf_to_gguf.py").write_text("print('other')\n")
        git("commit", "-qam", "two", at=place)
        git("tag", "-f", TAG, at=place)
        monkeypatch.setenv("ORCHESTRATE_CACHE_DIR", str(tmp_path / "fresh"))
        answer = orchestrate("run", file)
        assert answer.code == 1 and before
        assert old in answer.err and git("rev-parse", TAG, at=place).strip() in answer.err
        moved = orchestrate("lock", file, "--upgrade", "llama_cpp")
        assert moved.code == 0 and f"llama_cpp: commit {old} → " in moved.err, moved.err
    finally:
        git("reset", "-q", "--hard", old, at=place)
        git("tag", "-f", TAG, at=place)


def test_a_model_from_the_hub_gives_the_bytes_of_its_folder(
    hub: Hub, orchestrate: Callable[..., Answer], job: Callable[..., Path], data: Path, world: Path
) -> None:
    plan = orchestrate("plan", job({"source": "org/m", "name": "m", "outtype": "f16"}), "--json")
    assert plan.code == 0, plan.err
    whole = sum(len(content) for name, content in hub.files.items() if (data / "tiny-llama" / name).is_file())
    fetch = next(step for step in plan.json()["steps"] if step["name"] == "fetch m")
    assert fetch["status"] == "run" and fetch["download"] == whole
    assert not any("/resolve/" in path or "/store/" in path for path in hub.seen), "a plan downloads nothing"
    answer = orchestrate("run", job({"source": "org/m", "outtype": "f16"}))
    assert answer.code == 0, answer.err
    assert not [path for path in hub.seen if path.endswith((".pth", ".onnx", ".bin"))] and not hub.tokens
    assert (
        orchestrate(
            "run", job({"source": str(data / "tiny-llama"), "name": "m", "outtype": "f16"}, name="local.yaml", output="local")
        ).code
        == 0
    )
    assert (world / "dist" / "m-f16.gguf").read_bytes() == (world / "local" / "m-f16.gguf").read_bytes()


@pytest.mark.slow
def test_a_check_by_files_that_are_not_here_any_more_names_the_way(
    hub: Hub, orchestrate: Callable[..., Answer], job: Callable[..., Path], world: Path
) -> None:
    # By a name of its own: what another test has fetched would be shown again.
    assert orchestrate("run", job({"source": "org/m", "name": "gone", "outtype": "f16"})).code == 0
    made = world / "dist" / "gone-f16.gguf"
    next((world.parent / "hf").rglob("snapshots/*/model.safetensors")).resolve().unlink()
    answer = orchestrate("verify", made, "--level", "content")
    assert answer.code == 2 and "the files of org/m are not on this machine" in answer.err
    assert "orchestrate run job.yaml --force" in answer.err and orchestrate("run", "job.yaml", "--force").code == 0
    assert orchestrate("verify", made, "--level", "content").code == 0


def test_only_adapters_download_no_weights_of_the_base(
    hub: Hub, orchestrate: Callable[..., Answer], job: Callable[..., Path], data: Path
) -> None:
    answer = orchestrate("run", job({"source": "org/m", "outtype": "none", "loras": [str(data / "lora-a")]}))
    assert answer.code == 0, answer.err
    assert not [path for path in hub.seen if path.endswith(".safetensors")]


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [("gated", 1, "gated"), ("missing", 1, "org/m"), ("revision", 1, "revision"), ("corrupt", 1, "is not what the hub lists")],
)
def test_what_the_hub_refuses_or_spoils(
    fault: str, code: int, words: str, hub: Hub, orchestrate: Callable[..., Answer], job: Callable[..., Path], world: Path
) -> None:
    hub.fault = fault
    file = job({"source": "org/m", "name": fault, "outtype": "f16"})
    answer = orchestrate("run", file)
    assert answer.code == code and words in answer.err and "hint:" in answer.err and not list(world.glob("dist/*.gguf"))
    hub.fault = ""
    assert orchestrate("run", file).code == 0
