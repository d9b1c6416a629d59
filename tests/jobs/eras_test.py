"""The main job at tags of different times: what the driver makes is byte for byte what upstream's scripts make by hand."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import threading
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.verify import gguf
from tests.support import ROOT
from tests.support.answer import Answer
from tests.support.folders import sums
from tests.support.makers import edit
from tests.support.stage import trees
from tests.support.stage.github import GitHub

# A tag, where its real tree comes from (the oldest out of the package that carried it in October 2024), and when it was made.
ERAS = {
    "b3878": ("0.3.1", "2024-10-04T15:18:16Z"),
    "b9760": ("b9760", "2026-06-22T14:43:10Z"),
    "b11434": ("b11434", "2026-10-05T21:12:38Z"),
}


@pytest.fixture(scope="module")
def history(tree: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository like upstream's, with the trees of three times under their tags."""
    root = tmp_path_factory.mktemp("history")
    trees.history(root, {tag: (tree(package), time) for tag, (package, time) in ERAS.items()})
    return root


@pytest.fixture
def upstream(world: Path, history: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GitHub]:
    """github.com with that repository."""
    with GitHub(history) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        monkeypatch.setenv("ORCHESTRATE_GITHUB_URL", server.url)
        monkeypatch.setenv("ORCHESTRATE_LLAMA_CPP_FROM", "git")
        yield server
        server.shutdown()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="a plan shows commands for another shell there")
@pytest.mark.parametrize("tag", ERAS)
def test_base_and_adapter_are_what_the_scripts_make_by_hand(
    tag: str,
    upstream: GitHub,
    orchestrate: Callable[..., Answer],
    job: Callable[..., Path],
    data: Path,
    world: Path,
    compiled: dict[str, str],
) -> None:
    model = {"source": str(data / "tiny-llama"), "outtype": ["f16", "q8_0"], "loras": [str(data / "lora-a")]}
    file = job(model, llama_cpp={"tag": tag})
    made = orchestrate("run", file, "--json")
    assert made.code == 0, made.err
    assert [output["type"] for output in made.json()["outputs"]] == ["f16", "q8_0", "f16"]
    shown = orchestrate("plan", file, "--force", "--json").json()
    commands = [step["command"] for step in shown["steps"] if step["name"].startswith("convert")]
    assert len(commands) == 3
    (world / "by-hand").mkdir()
    environment = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1", **compiled}
    for command in commands:
        bare = command.replace(str(world / "dist"), str(world / "by-hand"))
        subprocess.run(bare, shell=True, check=True, env=environment, capture_output=True)
    ours, theirs = (sums(world / folder) for folder in ("dist", "by-hand"))
    assert ours == theirs and len(ours) == 3
    assert any("/info/refs" in path for path in upstream.seen)


@pytest.mark.slow
def test_what_transformers_5_saved_has_its_rope_at_every_tag(
    upstream: GitHub, orchestrate: Callable[..., Answer], job: Callable[..., Path], copy: Callable[..., Path], world: Path
) -> None:
    model = copy("tiny-llama", "m")
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    # Not the 8192 that the oldest script takes where it finds nothing.
    rope = {"rope_theta": 500_000.0, "original_max_position_embeddings": 512, **scaling}
    edit(model / "config.json", rope_theta=None, rope_scaling=None, rope_parameters=rope, transformers_version="5.23.0")
    factors = {}
    for tag in ERAS:
        file = job({"source": "./m", "outtype": "f32"}, llama_cpp={"tag": tag}, output=tag)
        assert orchestrate("run", file).code == 0
        contents = gguf.contents([world / tag / "m-f32.gguf"])
        assert contents.metadata["llama.rope.freq_base"] == 500_000
        path, tensor = contents.tensors["rope_freqs.weight"]
        factors[tag] = path.read_bytes()[tensor.start :][: tensor.size]
    assert len(set(factors.values())) == 1
    numbers = struct.unpack(f"<{len(factors['b3878']) // 4}f", factors["b3878"])
    # What wavelengths over 512 tokens are divided by; those under 128 stay.
    assert numbers[0] == 1.0 and numbers[-1] == 8.0


def test_a_scaling_that_a_tag_cannot_express_is_refused_before_the_weights_with_a_tag_that_can(
    upstream: GitHub, orchestrate: Callable[..., Answer], job: Callable[..., Path], copy: Callable[..., Path]
) -> None:
    model = copy("tiny-llama", "m")
    edit(model / "config.json", rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512})
    refused = orchestrate("run", job({"source": "./m"}, llama_cpp={"tag": "b3878"}))
    assert refused.code == 1
    assert (
        "b3878 does not know the rope scaling yarn of LlamaForCausalLM, and would convert the model as if it had none"
        in refused.err
    )
    assert "done    convert" not in refused.err


@pytest.mark.slow
@pytest.mark.parametrize("tag", ["b3878", "b11434"])
def test_unigram_tokenizers_convert_in_the_environment_of_the_tags_time(
    tag: str, upstream: GitHub, orchestrate: Callable[..., Answer], job: Callable[..., Path], python: Path, world: Path
) -> None:
    # Upstream's scripts import sentencepiece_model_pb2 for these three, in functions.
    subprocess.run([str(python), ROOT / "tests" / "inside" / "unigram.py", ROOT / "README.md", world / "models"], check=True)
    names = ("t5", "xlmr", "internlm2")
    file = job(*({"source": f"./models/{name}", "outtype": "f16"} for name in names), llama_cpp={"tag": tag})
    made = orchestrate("run", file, "--json")
    assert made.code == 0, made.err
    assert [Path(output["path"]).name for output in made.json()["outputs"]] == [f"{name}-f16.gguf" for name in names]
    lock = lock_file.read(lock_file.path_for(file))
    assert lock and lock.environment and lock.llama_cpp.time == ERAS[tag][1]
    versions = dict(re.findall(r"^([\w-]+)==([\w.]+)", lock.environment.requirements, re.MULTILINE))
    assert versions["sentencepiece"] == {"b3878": "0.2.0", "b11434": "0.2.2"}[tag], "the newest at the tag's time"
