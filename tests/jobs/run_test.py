"""The main job, end to end: the real driver, upstream's real scripts, a real environment."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llamacpp_orchestrator.pipeline import trial
from llamacpp_orchestrator.util.hashing import file_sha256
from llamacpp_orchestrator.verify import gguf
from llamacpp_orchestrator.verify import levels
from tests.support import makers
from tests.support.answer import Answer
from tests.support.folders import former_stage_of
from tests.support.folders import remains
from tests.support.folders import stages_of
from tests.support.folders import sums

Orchestrate = Callable[..., Answer]
Job = Callable[..., Path]
Copy = Callable[..., Path]
OUTPUTS = (".*", "*.gguf")  # what no failure may leave in any folder


def the_whole_job(data: Path) -> list[Any]:
    llama = {"source": str(data / "tiny-llama"), "loras": [str(data / "lora-a"), str(data / "lora-b")]}
    return [{"source": str(data / "all-MiniLM-L6-v2"), "outtype": ["f16", "q8_0"]}, llama]


def test_a_whole_job_is_built_then_current_and_verified(orchestrate: Orchestrate, job: Job, data: Path, world: Path) -> None:
    file = job(*the_whole_job(data))
    first = orchestrate("run", file, "--json")
    assert first.code == 0, first.err
    assert "PyTorch's index cannot be reached" in first.err
    made = first.json()
    assert made["status"] == "ok"
    assert {step["status"] for step in made["steps"]} <= {"done", "current"}
    assert {(output["kind"], output["type"], output["status"]) for output in made["outputs"]} == {
        ("model", "f16", "built"),
        ("model", "q8_0", "built"),
        ("model", "bf16", "built"),
        ("adapter", "f16", "built"),
    }
    assert len(made["outputs"]) == 5
    for output in made["outputs"]:
        assert file_sha256(Path(output["path"])) == output["sha256"]
    checks = gguf.check(world / "dist" / "tiny-llama-bf16.gguf")
    assert (checks.name, checks.architecture, checks.kind) == ("tiny-llama", "llama", "model")
    assert gguf.check(world / "dist" / "tiny-llama-lora-a-lora-f16.gguf").kind == "adapter"
    before = sums(world / "dist")
    second = orchestrate("run", file, "--json")
    assert second.code == 0
    assert {output["status"] for output in second.json()["outputs"]} == {"current"}
    assert {step["name"].split()[0] for step in second.json()["steps"]} == {"convert"}
    assert sums(world / "dist") == before
    assert orchestrate("verify", "dist").out.count("ok ") == 5


def test_outputs_may_lie_beside_their_source(orchestrate: Orchestrate, job: Job, data: Path, world: Path) -> None:
    shutil.copytree(data / "tiny-llama", world / "model")
    file = job({"source": "./model", "outtype": "f16"}, output="model")
    assert orchestrate("run", file).code == 0
    again = orchestrate("run", file)
    assert again.code == 0 and "current convert" in again.err, again.err
    assert orchestrate("run", file, "--locked", "--force").code == 0


def test_a_finished_job_needs_neither_cache_nor_network(
    orchestrate: Orchestrate, job: Job, data: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = job({"source": str(data / "tiny-llama"), "outtype": "f16"})
    assert orchestrate("run", file).code == 0
    monkeypatch.setenv("ORCHESTRATE_CACHE_DIR", str(world / "empty"))
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    again = orchestrate("run", file, "--locked")
    assert again.code == 0 and "current convert tiny-llama-f16.gguf" in again.err
    assert "current" in again.out and "tiny-llama-f16.gguf" in again.out


@pytest.mark.slow
def test_equal_jobs_give_equal_bytes_in_another_cache(
    orchestrate: Orchestrate, job: Job, data: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [{"source": str(data / "tiny-llama"), "outtype": "f16", "loras": [str(data / "lora-a")]}]
    assert orchestrate("run", job(*models, output="one")).code == 0
    monkeypatch.setenv("ORCHESTRATE_CACHE_DIR", str(world / "other" / "cache"))
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    copied = shutil.copytree(data / "tiny-llama", world / "elsewhere" / "tiny-llama")
    models = [{"source": str(copied), "outtype": "f16", "loras": [str(data / "lora-a")]}]
    answer = orchestrate("run", job(*models, name="other.yaml", output="two"), "--jobs", "1")
    assert answer.code == 0, answer.err
    assert sums(world / "one") == sums(world / "two")
    shutil.rmtree(world / "other")


@pytest.mark.slow
def test_the_warm_interpreter_makes_the_bytes_of_a_bare_script(
    orchestrate: Orchestrate, job: Job, data: Path, world: Path, compiled: dict[str, str]
) -> None:
    file = job({"source": str(data / "tiny-llama"), "outtype": "f16"})
    assert orchestrate("run", file).code == 0
    shown = orchestrate("plan", file, "--force", "--json").json()
    command = next(step["command"] for step in shown["steps"] if step["name"].startswith("convert"))
    bare = command.replace(str(world / "dist" / "tiny-llama-f16.gguf"), str(world / "bare.gguf"))
    environment = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1", **compiled}
    subprocess.run(bare, shell=True, check=True, env=environment, capture_output=True)
    assert file_sha256(world / "bare.gguf") == file_sha256(world / "dist" / "tiny-llama-f16.gguf")


def test_only_adapters_need_no_weights_of_their_base(
    orchestrate: Orchestrate, job: Job, copy: Copy, data: Path, world: Path
) -> None:
    (copy("tiny-llama", "base") / "model.safetensors").unlink()
    answer = orchestrate(
        "run",
        job({"source": "./base", "outtype": "none", "loras": [{"source": str(data / "lora-b"), "outtype": ["f16", "q8_0"]}]}),
    )
    assert answer.code == 0, answer.err
    assert set(sums(world / "dist")) == {"base-lora-b-lora-f16.gguf", "base-lora-b-lora-q8_0.gguf"}


def test_a_folder_with_spaces_and_chinese_and_a_name_of_its_own(
    orchestrate: Orchestrate, job: Job, copy: Copy, world: Path
) -> None:
    copy("tiny-llama", "模型 一")
    assert (
        orchestrate(
            "run", job({"source": "./模型 一", "outtype": "f16"}, {"source": "./模型 一", "outtype": "f16", "name": "mine"})
        ).code
        == 0
    )
    assert gguf.check(world / "dist" / "模型 一-f16.gguf").name == "模型 一"
    assert gguf.check(world / "dist" / "mine-f16.gguf").name == "mine"


def test_split_output_is_one_output_of_several_files(orchestrate: Orchestrate, job: Job, data: Path, world: Path) -> None:
    file = job({"source": str(data / "tiny-llama"), "outtype": "f32", "args": ["--split-max-size", "10M"]})
    made = orchestrate("run", file, "--json").json()
    names = [Path(output["path"]).name for output in made["outputs"]]
    assert len(names) > 1 and names[0] == f"tiny-llama-f32-00001-of-{len(names):05}.gguf"
    assert {output["status"] for output in orchestrate("run", file, "--json").json()["outputs"]} == {"current"}
    (world / "dist" / names[1]).unlink()
    assert orchestrate("run", file).code == 0 and (world / "dist" / names[1]).is_file()
    assert orchestrate("verify", "dist").code == 0


def test_a_sharded_model(orchestrate: Orchestrate, job: Job, copy: Copy, world: Path) -> None:
    model = copy("tiny-llama")
    names = makers.names(model / "model.safetensors")
    makers.shards(model)
    file = job({"source": "./model", "outtype": "f16"})
    assert orchestrate("run", file).code == 0
    assert gguf.check(world / "dist" / "model-f16.gguf").tensors == len(names)
    (model / "model-00002-of-00002.safetensors").unlink()
    answer = orchestrate("run", job({"source": "./model", "outtype": "f16"}, name="broken.yaml", output="other"))
    assert answer.code == 1 and "model-00002-of-00002.safetensors" in answer.err and remains(world / "other", also=OUTPUTS) == []


def test_a_mamba_without_any_tokenizer_uses_the_built_in_vocabulary(
    orchestrate: Orchestrate, job: Job, demo_data: ModuleType, world: Path
) -> None:
    width, inner, state = 32, 64, 16
    config = {
        "architectures": ["MambaForCausalLM"],
        "model_type": "mamba",
        "d_model": width,
        "hidden_size": width,
        "n_layer": 1,
        "num_hidden_layers": 1,
    }
    config |= {
        "vocab_size": 50280,
        "intermediate_size": inner,
        "state_size": state,
        "conv_kernel": 4,
        "time_step_rank": 2,
        "layer_norm_epsilon": 1e-5,
    }
    demo_data.write_json(world / "mamba" / "config.json", config)
    layer = "backbone.layers.0"
    shapes = {"backbone.embeddings.weight": (50280, width), "backbone.norm_f.weight": (width,), f"{layer}.norm.weight": (width,)}
    shapes |= {f"{layer}.mixer.in_proj.weight": (2 * inner, width), f"{layer}.mixer.out_proj.weight": (width, inner)}
    shapes |= {
        f"{layer}.mixer.conv1d.weight": (inner, 1, 4),
        f"{layer}.mixer.conv1d.bias": (inner,),
        f"{layer}.mixer.A_log": (inner, state),
    }
    shapes |= {f"{layer}.mixer.x_proj.weight": (2 + 2 * state, inner), f"{layer}.mixer.dt_proj.weight": (inner, 2)}
    shapes |= {f"{layer}.mixer.dt_proj.bias": (inner,), f"{layer}.mixer.D": (inner,)}
    demo_data.write_safetensors(world / "mamba" / "model.safetensors", shapes, "F32", 3)
    answer = orchestrate("run", job({"source": "./mamba", "outtype": "f16"}))
    assert answer.code == 0, answer.err
    assert gguf.check(world / "dist" / "mamba-f16.gguf").architecture == "mamba"


def truncated(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1_000_000])


def with_code(model: Path) -> None:
    makers.edit(model / "config.json", auto_map=makers.OWN_CODE)
    makers.bring_code(model, model.parent / "MARK")


def pickled(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def unknown(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"architectures": ["NoSuchModelForCausalLM"]}))


def without_tokenizer(model: Path) -> None:
    (model / "tokenizer.model").unlink()


def without_config(model: Path) -> None:
    (model / "config.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "cause", "remedy"),
    [
        (truncated, "is cut", "download or copy it again"),
        (with_code, "auto_map", "trust_remote_code"),
        (pickled, "pickle", "trust_remote_code"),
        (unknown, "does not know the architecture NoSuchModelForCausalLM", "newer tag"),
        (without_tokenizer, "tokenizer", "tokenizer files"),
        (without_config, "config.json", "hint:"),
    ],
)
def test_a_broken_model_fails_with_cause_and_remedy_and_leaves_nothing(
    spoil: Callable[[Path], None], cause: str, remedy: str, orchestrate: Orchestrate, job: Job, copy: Copy, world: Path
) -> None:
    spoil(copy("tiny-llama"))
    answer = orchestrate("run", job({"source": "./model", "outtype": "f16"}))
    assert answer.code in (1, 2)
    assert cause in answer.err and remedy in answer.err and "Traceback" not in answer.err
    assert remains(world / "dist", also=OUTPUTS) == [] and not (world / "MARK").exists()


def test_nan_weights_are_caught_though_upstream_is_content(orchestrate: Orchestrate, job: Job, copy: Copy, world: Path) -> None:
    weights = copy("tiny-llama") / "model.safetensors"
    raw = weights.read_bytes()
    weights.write_bytes(raw[:-2] + b"\xc0\x7f")
    answer = orchestrate("run", job({"source": "./model", "outtype": "f16"}))
    assert answer.code == 1 and "failed  verify model-f16.gguf" in answer.err and "holds NaN" in answer.err
    (stage,) = stages_of(world / "dist" / "model-f16.gguf")
    assert remains(world / "dist", also=OUTPUTS) == [stage, stage / "model-f16.gguf"]
    assert f"{stage / 'model-f16.gguf'}" in answer.err
    weights.write_bytes(raw)
    assert orchestrate("lock", world / "job.yaml", "--upgrade").code == 0 and orchestrate("run", world / "job.yaml").code == 0
    assert remains(world / "dist", also=OUTPUTS) == [world / "dist" / "model-f16.gguf"]


def test_an_adapter_of_another_base_is_refused(orchestrate: Orchestrate, job: Job, copy: Copy, data: Path, world: Path) -> None:
    model = copy("tiny-llama")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    answer = orchestrate("run", job({"source": "./model", "outtype": "none", "loras": [str(data / "lora-a")]}))
    assert answer.code == 1 and "was not trained on model" in answer.err and "tiny-llama" in answer.err
    assert remains(world, also=OUTPUTS) == []


def test_keep_going_makes_what_it_can_and_tells_every_failure(
    orchestrate: Orchestrate, job: Job, copy: Copy, data: Path, world: Path
) -> None:
    unknown(copy("tiny-llama"))
    file = job({"source": "./model", "outtype": "f16"}, {"source": str(data / "tiny-llama"), "outtype": "f16"})
    answer = orchestrate("run", file, "--keep-going", "--json")
    assert answer.code == 1
    statuses = {step["name"]: step["status"] for step in answer.json()["steps"]}
    assert statuses["fetch model"] == "failed" and statuses["convert model-f16.gguf"] == "blocked"
    assert statuses["verify tiny-llama-f16.gguf"] == "done"
    assert [Path(output["path"]).name for output in answer.json()["outputs"]] == ["tiny-llama-f16.gguf"]


def test_a_type_that_the_tag_lacks_is_told_before_anything_is_converted(
    orchestrate: Orchestrate, job: Job, data: Path, world: Path
) -> None:
    answer = orchestrate("run", job({"source": str(data / "tiny-llama"), "outtype": "q4_k_m"}))
    assert answer.code == 2 and "it has f32, f16" in answer.err and "`quantize`" in answer.err
    assert not (world / "dist").exists()


def test_files_of_the_user_are_never_overwritten(orchestrate: Orchestrate, job: Job, data: Path, world: Path) -> None:
    file = job({"source": str(data / "tiny-llama"), "outtype": "f16"})
    mine = world / "dist" / "tiny-llama-f16.gguf"
    mine.parent.mkdir()
    mine.write_text("mine")
    answer = orchestrate("run", file)
    assert answer.code == 2 and "nothing says that orchestrate made it" in answer.err and mine.read_text() == "mine"
    assert orchestrate("run", file, "--force").code == 0
    good = file_sha256(mine)
    mine.write_text("edited")
    assert orchestrate("run", file).code == 2 and mine.read_text() == "edited"
    mine.unlink()
    assert orchestrate("run", file).code == 0 and file_sha256(mine) == good


def test_a_folder_that_changed_since_the_lock_is_drift(orchestrate: Orchestrate, job: Job, copy: Copy, world: Path) -> None:
    model = copy("tiny-llama")
    file = job({"source": "./model", "outtype": "f16"})
    assert orchestrate("run", file).code == 0
    (model / "README.md").write_text("---\nlicense: mit\n---\n")
    answer = orchestrate("run", file)
    assert answer.code == 1 and "README.md has changed since it was locked" in answer.err
    assert orchestrate("lock", file, "--upgrade").code == 0 and orchestrate("run", file).code == 0


def test_locked_asks_for_a_lock_that_fits(orchestrate: Orchestrate, job: Job, data: Path, world: Path) -> None:
    file = job({"source": str(data / "tiny-llama"), "outtype": "f16"})
    assert orchestrate("run", file, "--locked").code == 3
    assert orchestrate("lock", file).out.strip().endswith("job.lock.yaml")
    first = (world / "job.lock.yaml").read_bytes()
    assert orchestrate("lock", file, "--upgrade").code == 0 and (world / "job.lock.yaml").read_bytes() == first
    assert str(world).encode() not in first
    assert orchestrate("run", file, "--locked").code == 0
    job({"source": str(data / "lora-a"), "outtype": "f16"})
    assert orchestrate("run", file, "--locked").code == 3
    (world / "job.lock.yaml").write_text("version: 1\nnonsense: true\n")
    damaged = orchestrate("run", file)
    assert damaged.code == 3 and "is damaged" in damaged.err


def test_a_changed_tree_in_the_cache_is_repaired(
    orchestrate: Orchestrate, job: Job, data: Path, world: Path, shared_cache: Path
) -> None:
    file = job({"source": str(data / "tiny-llama"), "outtype": "f16"})
    assert orchestrate("run", file).code == 0
    script = shared_cache / "source" / "package-b11434" / "convert_hf_to_gguf.py"
    script.write_text(script.read_text() + f"\nopen({str(world / 'MARK')!r}, 'w')\n")
    assert orchestrate("run", file, "--force").code == 0
    assert not (world / "MARK").exists() and "MARK" not in script.read_text()


@pytest.mark.slow
def test_what_was_put_beside_the_scripts_is_not_taken_for_a_part_of_them(
    orchestrate: Orchestrate, job: Job, data: Path, world: Path, shared_cache: Path
) -> None:
    file = job({"source": str(data / "tiny-llama"), "outtype": "f16"})
    assert orchestrate("run", file).code == 0
    tree, planted = shared_cache / "source" / "package-b11434", f"open({str(world / 'MARK')!r}, 'w')\n"
    for name in ("torch.py", "sitecustomize.py", "conversion/__pycache__/base.cpython-311.pyc", "numpy/__init__.py"):
        place = tree / name
        place.parent.mkdir(exist_ok=True)
        place.write_text(planted, encoding="utf-8")
        assert orchestrate("run", file, "--force").code == 0
        assert not (world / "MARK").exists() and not place.exists()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_everything_and_the_next_run_goes_on(
    number: signal.Signals, code: int, orchestrate: Orchestrate, job: Job, data: Path, world: Path
) -> None:
    file = job({"source": str(data / "all-MiniLM-L6-v2"), "outtype": ["f32", "f16"]})
    assert orchestrate("setup", job(str(data / "tiny-llama"), name="setup.yaml", binaries={"backend": "none"})).code == 0
    child = subprocess.Popen([sys.executable, "-m", "llamacpp_orchestrator", "run", str(file)], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(world.glob("dist/.*.stage")) and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(number)
    _, said = child.communicate(timeout=30)
    assert child.returncode == code, said
    assert b"Traceback" not in said and remains(world / "dist", also=OUTPUTS) == []
    assert orchestrate("run", file).code == 0


def test_a_killed_run_is_healed_by_the_next(orchestrate: Orchestrate, job: Job, data: Path, world: Path) -> None:
    file = job({"source": str(data / "tiny-llama"), "outtype": "f16"})
    assert orchestrate("run", file).code == 0
    good = sums(world / "dist")
    final = world / "dist" / "tiny-llama-f16.gguf"
    receipt = final.with_name(final.name + ".receipt.json")
    # As after a kill between the renames, of this version or an older one: the receipt is in the stage folder, the file half way.
    for stage in (final.parent / former_stage_of(final).name.replace(".stage", ".0badcafe.stage"), former_stage_of(final)):
        stage.mkdir()
        receipt.rename(stage / receipt.name)
        final.rename(stage / final.name)
        assert orchestrate("run", file).code == 0
        assert sums(world / "dist") == good and not stage.exists() and receipt.is_file()


def _rename(folder: Path) -> None:
    folder.rename(folder.with_name("renamed"))


def _replace(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("mine")


def _clean(folder: Path) -> None:
    for stage in stages_of(folder / "tiny-llama-f16.gguf"):
        shutil.rmtree(stage)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cleaned": (_clean, "stage was removed while tiny-llama-f16.gguf was made in it"),
    "removed": (shutil.rmtree, "dist was removed or renamed while tiny-llama-f16.gguf was made in it"),
    "renamed": (_rename, "dist was removed or renamed while"),
    "replaced": (_replace, "dist is a file now while"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("step", ["convert", "verify"])
def test_a_folder_that_somebody_takes_away_is_told_as_that(
    step: str, change: str, orchestrate: Orchestrate, job: Job, data: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name = {"convert": (trial, "convert"), "verify": (levels, "check")}[step]
    real = getattr(module, name)

    def changed(*args: Any, **named: Any) -> Any:
        CHANGES[change][0](world / "dist")
        return real(*args, **named)

    file = job({"source": str(data / "tiny-llama"), "outtype": "f16"})
    with monkeypatch.context() as patch:
        patch.setattr(module, name, changed)
        answer = orchestrate("run", file)
    assert answer.code == 1 and CHANGES[change][1] in answer.err and "run the same command again" in answer.err, answer.err
    assert remains(world / "dist") == [] and not sums(world / "dist")
    if change == "replaced":
        assert (world / "dist").read_text() == "mine"
        (world / "dist").unlink()
    assert orchestrate("run", file).code == 0 and list(sums(world / "dist")) == ["tiny-llama-f16.gguf"]


def test_no_secret_reaches_a_converter_a_log_a_lock_or_a_receipt(
    orchestrate: Orchestrate, job: Job, data: Path, world: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_SECRETSECRET")
    monkeypatch.setenv("GITHUB_TOKEN", "ghp_SECRETSECRET")
    assert (
        orchestrate(
            "run", job({"source": str(data / "tiny-llama"), "outtype": "f16", "loras": [str(data / "lora-a")]}), "--force"
        ).code
        == 0
    )
    texts = [*world.rglob("*.json"), *world.rglob("*.yaml"), *(shared_cache / "logs").rglob("*.log")]
    assert texts and not [path for path in texts if b"SECRETSECRET" in path.read_bytes()]


@pytest.mark.slow
def test_where_there_is_no_fork_each_conversion_is_a_process_of_its_own(
    orchestrate: Orchestrate, job: Job, copy: Copy, data: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert orchestrate("run", job({"source": str(data / "tiny-llama"), "outtype": "f16"}, output="forked")).code == 0
    monkeypatch.setattr("llamacpp_orchestrator.system.host.system", lambda: "macos")
    unknown(copy("tiny-llama"))
    file = job({"source": "./model", "outtype": "f16"}, {"source": str(data / "tiny-llama"), "outtype": "f16"}, name="alone.yaml")
    answer = orchestrate("run", file, "--keep-going")
    assert answer.code == 1 and "does not know the architecture" in answer.err
    assert sums(world / "dist") == sums(world / "forked")
