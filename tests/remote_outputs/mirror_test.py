"""The mirror of an address: which names there are a job's, and what of it may go."""

from __future__ import annotations

from pathlib import Path

import pytest

from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.context import at_work
from llamacpp_orchestrator.job import loader
from llamacpp_orchestrator.remote_outputs import mirror
from llamacpp_orchestrator.storage import stored
from llamacpp_orchestrator.storage.stored import Stored
from llamacpp_orchestrator.system import settings

JOB = """\
version: 1
llama_cpp: {tag: b11434}
output: s3://bucket/prefix/
models:
  - source: org/tiny
    outtype: [bf16]
    outfile: "sub/{name}-{type}.gguf"
    quantize: Q8_0
    imatrix: {text: words.txt}
    quality: words.txt
    ollama: true
    merge: org/bot
    keep_merged: true
    loras: org/bot
"""


@pytest.fixture
def context(tmp_path: Path) -> Context:
    file = tmp_path / "job.yaml"
    machine = settings.load({"ORCHESTRATE_CACHE_DIR": str(tmp_path / "cache"), "HOME": str(tmp_path)})
    return at_work(loader.parse(JOB.encode(), file), file, machine)


def test_a_job_at_an_address_is_worked_on_in_the_cache(context: Context, tmp_path: Path) -> None:
    assert context.address == "s3://bucket/prefix" and mirror.root(context).is_relative_to(tmp_path / "cache" / "outputs")
    path = mirror.root(context) / "sub" / "x.gguf"
    assert context.named(path) == "s3://bucket/prefix/sub/x.gguf" and mirror.name(context, path) == "sub/x.gguf"
    assert not (tmp_path / "cache").exists()


def test_what_a_job_may_have_there_is_known_by_its_name(context: Context) -> None:
    root, known = mirror.root(context), mirror.names(context.job, context.file.parent)
    assert set(known) == {root, root / "sub", root / "tiny-bot"}
    sub = known[root / "sub"]
    assert sub.outputs == {"tiny-bot-bf16.gguf", "tiny-bot-Q8_0.gguf"} and sub.others == {
        "tiny-bot-imatrix.gguf",
        "tiny-bot-imatrix.dat",
    }
    small = {"tiny-bot-bf16.gguf.receipt.json", "tiny-bot-Q8_0.Modelfile", "tiny-bot-quality.json", "tiny-bot-quality.svg"}
    assert small <= sub.small
    assert sub.output_of("tiny-bot-bf16-00001-of-00002.gguf") == "tiny-bot-bf16.gguf" and not sub.output_of("other.gguf")
    merged = known[root / "tiny-bot"]
    assert merged.whole and merged.output_of("config.json") == "model.safetensors"


def test_a_small_file_is_sent_while_it_is_the_one_that_was_seen(tmp_path: Path) -> None:
    path = tmp_path / "x.Modelfile"
    path.write_text("one")
    assert not mirror.is_sent(path)
    stored.write(path, Stored(address="s3://b/x", size=3, version="e", sha256=mirror.digest_of(path)))
    assert mirror.is_sent(path)
    path.write_text("two")
    assert not mirror.is_sent(path)


def test_of_a_folder_nothing_is_unsent_and_nothing_goes(context: Context) -> None:
    import msgspec

    from llamacpp_orchestrator.pipeline.build import Outputs

    local = msgspec.structs.replace(context, address="")
    mirror.look(local)
    mirror.free(local, [context.file])
    assert mirror.unsent(local, Outputs((), frozenset())) == [] and not context.store.root.exists()
