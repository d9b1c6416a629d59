"""The pure decisions of environment, convert, lock, build, disk and console, as tables."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import pytest

from llamacpp_orchestrator import console
from llamacpp_orchestrator.binaries.release import Asset
from llamacpp_orchestrator.commands import disk
from llamacpp_orchestrator.convert import commands
from llamacpp_orchestrator.convert import quantize
from llamacpp_orchestrator.convert import warm_worker
from llamacpp_orchestrator.environment import indexes
from llamacpp_orchestrator.environment import python_version
from llamacpp_orchestrator.environment import requirements
from llamacpp_orchestrator.environment import venv as environment_venv
from llamacpp_orchestrator.environment.pin import python_in
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.errors import LockError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.job import layout as job_layout
from llamacpp_orchestrator.job import loader
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.lock import diff
from llamacpp_orchestrator.lock import file as lock_file
from llamacpp_orchestrator.lock import records
from llamacpp_orchestrator.models.hub import HubFile
from llamacpp_orchestrator.pipeline import build
from llamacpp_orchestrator.source import pin
from llamacpp_orchestrator.system import disk as system_disk
from llamacpp_orchestrator.system.command import script_env
from llamacpp_orchestrator.system.scheduler import Event
from llamacpp_orchestrator.system.settings import Index
from llamacpp_orchestrator.system.settings import Settings
from llamacpp_orchestrator.util import units


def tree(folder: Path, **files: str) -> Path:
    (folder / "requirements").mkdir(parents=True)
    for name, text in files.items():
        (folder / "requirements" / f"requirements-{name}.txt").write_text(text)
    return folder


def test_requirements_of_both_scripts_without_index_lines_and_machines_that_we_do_not_serve(tmp_path: Path) -> None:
    legacy = "numpy~=1.26.4  # a comment\nprotobuf>=4.21.0,<5.0.0\n"
    hf = "-r ./requirements-convert_legacy_llama.txt\n--extra-index-url https://example.org/whl\n\n## why\n"
    hf += 'torch==2.11.0; platform_machine != "s390x"\ntorch>=0.0.0.dev0; platform_machine == "s390x"\n'
    lora = "-r ./requirements-convert_hf_to_gguf.txt\n--extra-index-url https://example.org/whl\n"
    root = tree(tmp_path, convert_hf_to_gguf=hf, convert_lora_to_gguf=lora, convert_legacy_llama=legacy)
    found = requirements.upstream_requirements(root)
    assert found == ("numpy~=1.26.4", "protobuf>=4.21.0,<5.0.0", 'torch==2.11.0; platform_machine != "s390x"')


@pytest.mark.parametrize(
    ("hf", "message"),
    [
        (None, "has no requirements/requirements-convert_hf_to_gguf.txt"),
        ("-r ../../outside.txt", "outside of the tree"),
        (
            "-r ./missing.txt",
            "requirements-convert_hf_to_gguf.txt of this llama.cpp includes ./missing.txt, which it does not have",
        ),
        ("not a requirement!", "is not a requirement"),
    ],
)
def test_requirements_that_cannot_be_read(tmp_path: Path, hf: str | None, message: str) -> None:
    root = tree(tmp_path / "tree", **({"convert_hf_to_gguf": hf} if hf else {}), convert_lora_to_gguf="")
    with pytest.raises(OrchestrateError, match=message.replace("(", "\\(")):
        requirements.upstream_requirements(root)


def test_a_cycle_of_requirement_files_ends(tmp_path: Path) -> None:
    name = "convert_hf_to_gguf"
    root = tree(tmp_path, **{name: f"-r requirements-{name}.txt\nnumpy\n"}, convert_lora_to_gguf="")
    assert requirements.upstream_requirements(root) == ("numpy",)


@pytest.mark.parametrize(
    ("allowed", "nearby", "running", "installed", "first"),
    [
        ([{"3.10", "3.11", "3.12"}], [], "3.13", ["3.13"], "3.12"),
        ([{"3.10", "3.11", "3.12"}, {"3.11", "3.12"}], [], "3.11", ["3.11"], "3.11"),
        ([{"3.11", "3.12"}], [{"3.11"}], "3.12", ["3.12"], "3.11"),
        ([{"3.11", "3.12"}], [], "3.13", ["3.11", "3.13"], "3.11"),
        ([], [], "3.13", ["3.13"], "3.13"),
        ([{"3.9"}], [], "3.13", ["3.13"], None),
    ],
)
def test_the_interpreter_is_one_that_the_pins_allow(
    allowed: list[set[str]], nearby: list[set[str]], running: str, installed: list[str], first: str | None
) -> None:
    assert next(iter(python_version.order(allowed, nearby, running, installed)), None) == first


def test_the_pins_of_2024_do_not_allow_python_3_13() -> None:
    tags = ["cp310-cp310", "cp311-cp311", "cp312-cp312"]
    platforms = ("manylinux2014_x86_64", "manylinux2014_aarch64", "macosx_11_0_arm64", "macosx_10_9_x86_64", "win_amd64")
    wheels = [f"torch-2.2.2-{tag}-{platform}.whl" for tag in tags for platform in platforms]
    newer = [f"torch-2.6.0-cp313-cp313-{platform}.whl" for platform in platforms]
    wanted = requirements.parse("torch~=2.2.1")
    assert python_version.supported(wanted, [*wheels, *newer, "torch-2.2.2.tar.gz", "x.whl"]) == {"3.10", "3.11", "3.12"}
    assert python_version.supported(requirements.parse("torch"), ["torch-1.0-py3-none-any.whl"]) == set(python_version.MINORS)


def test_index_settings_reach_uv_in_its_environment_only() -> None:
    index = Index(
        index_urls=("https://u:p@example.org/simple",), extra_index_urls=("https://b",), find_links=("/wheels",), cert="/ca.pem"
    )
    environ = {"UV_INDEX_URL": "https://old", "UV_CACHE_DIR": "/c", "HTTPS_PROXY": "http://proxy", "HF_TOKEN": "secret"}
    assert indexes.index_variables(index, "https://torch/cpu", environ) == {
        "UV_CACHE_DIR": "/c",
        "HTTPS_PROXY": "http://proxy",
        "UV_DEFAULT_INDEX": "https://u:p@example.org/simple",
        "UV_INDEX": "https://u:p@example.org/simple https://torch/cpu https://b",
        "UV_FIND_LINKS": "/wheels",
        "SSL_CERT_FILE": "/ca.pem",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }
    assert indexes.torch_indexes("upstream", Settings(cache=Path("c"), index=index)) == ()
    assert indexes.torch_indexes("cu128", Settings(cache=Path("c"), torch_index=("https://t",), index=index)) == (
        "https://t/cu128",
    )


def test_python_is_found_in_every_layout(tmp_path: Path) -> None:
    for layout in ("bin/python", "Scripts/python.exe", "python.exe"):
        venv = tmp_path / layout.replace("/", "-")
        (venv / layout).parent.mkdir(parents=True)
        (venv / layout).touch()
        assert python_in(venv) == venv / layout
    assert environment_venv.unhealthy(tmp_path / "gone") == "its interpreter is gone"


def test_an_own_environment_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="no Python in"):
        environment_venv.own(tmp_path, tmp_path / "job.yaml")


def test_find_links_folders(tmp_path: Path) -> None:
    (tmp_path / "a.whl").touch()
    assert indexes.find_links_paths([str(tmp_path), tmp_path.as_uri(), "https://example.org/page"]) == [tmp_path / "a.whl"] * 2


def test_a_failure_never_repeats_the_advice_to_load_pickles_unsafely() -> None:
    error = warm_worker.failed(
        CommandFailed("x ended with exit code 1", code=1, tail="boom\nset weights_only=False to load it\nlast")
    )
    assert "weights_only" not in error.message and "last" in error.message
    assert "--jobs 1" in warm_worker.failed(CommandFailed("x was killed", code=-9)).hint


@pytest.mark.parametrize(("line", "shown"), [("Writing:  45%|####  | 1/2", "45%"), ("a 1%|\r 99%|", "99%"), ("INFO: 45%", "")])
def test_progress(line: str, shown: str) -> None:
    assert warm_worker.progress_of(line) == shown


@pytest.mark.parametrize(("system", "forks"), [("linux", True), ("macos", False), ("windows", False)])
def test_where_an_interpreter_may_be_forked(system: str, forks: bool) -> None:
    assert warm_worker.can_fork(system) is forks


def test_a_converter_knows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "PYTHONPATH", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "secret")
    given = dict(script_env(Path("/home")))
    assert "secret" not in given.values() and given["HF_HUB_OFFLINE"] == "1" and given["PYTHONUTF8"] == "1" and given["PATH"]


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("main: invalid ftype 'Q9'", "llama-quantize"),
        ("this quantization requires an importance matrix! it is required", "Q4_K_M"),
        ("load_imatrix: failed to load imatrix from 'x'", "from a text"),
        ("imatrix size 64 is different from tensor size 128 for x", "of this model"),
        ("usage: llama-quantize [--help]", "quantize_args"),
        ("No space left on device", "free some space"),
        ("other", "log"),
    ],
)
def test_llama_quantize_is_explained(said: str, hint: str) -> None:
    assert hint in quantize.explain(said)[1]


def test_the_quantize_command_names_its_output_and_keeps_a_split() -> None:
    asked = commands.quantize_command(
        Path("/b/llama-quantize"), Path("/o/a.gguf"), Path("/s/b.gguf"), "Q4_K_M", spec.Model(source="a/b"), True
    )
    assert asked.argv[1:] == ("--keep-split", str(Path("/o/a.gguf")), str(Path("/s/b.gguf")), "Q4_K_M")
    assert dict(asked.env)["LD_LIBRARY_PATH"].startswith(str(Path("/b")))


TEXT = b"""
version: 1
llama_cpp: {tag: b11434}
models:
  - source: org/base
    outtype: f16
    quantize: [Q4_K_M]
    loras: [org/lora]
"""


def a_job(text: bytes = TEXT) -> spec.Job:
    return loader.parse(text, Path("job.yaml"))


def a_lock(job: spec.Job) -> records.Lock:
    file = HubFile(path="model.safetensors", size=2_000_000_000, sha256="a" * 64)
    models = tuple(records.FilesPin(wanted=wanted, commit="c" * 40, files=(file,)) for wanted in records.all_wanted(job))
    return records.Lock(
        llama_cpp=pin.SourcePin(tag="b11434", repo=job.llama_cpp.repo, tree="d" * 64, commit="e" * 40),
        environment=records.EnvironmentPin(
            upstream="0" * 64, torch="cpu", python="3.11", requirements="a==1 \\\n    --hash=sha256:" + "0" * 64 + "\nb==2\n"
        ),
        assets=(Asset(name="llama-b11434-bin-ubuntu-x64.tar.gz", url="https://x/y", size=1, sha256="b" * 64),),
        models=models,
    )


def test_a_lock_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    lock = a_lock(a_job())
    path = tmp_path / "job.lock.yaml"
    lock_file.write(path, lock)
    first = path.read_bytes()
    assert lock_file.read(path) == lock and lock_file.text_of(lock).encode() == first
    lock_file.write(path, lock)
    assert path.read_bytes() == first and diff.stale_reasons(a_job(), lock) == []
    assert lock_file.read(tmp_path / "none.yaml") is None


@pytest.mark.parametrize(
    ("text", "word"),
    [("version: 2", "damaged"), ("[1", "damaged"), ("a: 1", "damaged"), ("\xff", "cannot be read")],
)
def test_a_damaged_lock(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "job.lock.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(LockError, match=word):
        lock_file.read(tmp_path / "job.lock.yaml")


def test_a_lock_of_another_format(tmp_path: Path) -> None:
    path = tmp_path / "job.lock.yaml"
    path.write_text(lock_file.text_of(a_lock(a_job())).replace("version: 1", "version: 9", 1))
    with pytest.raises(LockError, match="format 9"):
        lock_file.read(path)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"b11434", b"b11000", "llama_cpp: locked b11434"),
        (b"models:", b"environment: {torch: cu128}\nmodels:", "environment: "),
        (b"org/lora", b"org/other", "org/other: not locked"),
        (b"source: org/base", b"source: org/base@dev", "org/base: not locked"),
        (b"    loras: [org/lora]\n", b"", "org/lora: locked, but no longer in the job"),
    ],
)
def test_why_a_lock_is_stale(old: bytes, new: bytes, reason: str) -> None:
    lock, job = a_lock(a_job()), a_job(TEXT.replace(old, new))
    assert any(reason in said for said in diff.stale_reasons(job, lock))
    assert diff.stale_reasons(job, None) == ["there is no lock"]


def test_a_lock_without_the_assets_that_quantizing_needs() -> None:
    lock = msgspec.structs.replace(a_lock(a_job()), assets=())
    assert diff.stale_reasons(a_job(), lock) == ["binaries: the release's assets are not locked"]
    with pytest.raises(KeyError):
        lock.files(records.Wanted(source="other", kind="model"))


def test_names_of_steps_are_told_apart() -> None:
    job = a_job(
        TEXT.replace(b"org/lora]", b"org/lora, other/lora]").replace(
            b"[org/lora, other/lora]", b"[org/lora, {source: other/lora, name: base}]"
        )
    )
    assert list(records.names(job).values()) == ["base", "lora", "base (other/lora)"]


def test_the_disk_must_hold_the_job(tmp_path: Path) -> None:
    system_disk.check_space([system_disk.Need(str(tmp_path / "not" / "there"), 1, "a file")])
    with pytest.raises(OrchestrateError, match=r"need 1000.1 PB|need .* have .* missing \(.* for the moon\)"):
        system_disk.check_space([system_disk.Need(str(tmp_path), 10**18, "the moon")])


@pytest.mark.parametrize(("kind", "share"), [("f16", 1.0), ("f32", 2.0), ("q8_0", 8.5 / 16), ("Q4_K_M", 5.0 / 16)])
def test_sizes_are_estimated_from_the_weights(kind: str, share: float) -> None:
    job = a_job()
    output = job_layout.Output(path=Path("/x.gguf"), kind="model", type=kind, model=job.models[0])
    made = build.Build(
        output=output,
        name="x",
        command=commands.quantize_command(Path("q"), Path("a"), Path("b"), "c", job.models[0]),
        shown=(),
        inputs=(),
        recipes=("",),
    )
    assert disk.estimate(a_lock(job), made) == int(2_000_000_000 * share)


def test_a_command_reads_the_same_on_every_machine() -> None:
    known = {"/c/views/k/m": "{model}", "/c": "{cache}", "C:\\t": "{tree}"}
    argv = ("/c/views/k/m", "/c/x", "C:\\t\\a\\b.py", "/cc/x", "f16")
    assert build.portable(argv, known) == ("{model}", "{cache}/x", "{tree}/a/b.py", "/cc/x", "f16")


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (999, "999 B"), (15_700, "15.7 kB"), (1.5e9, "1.5 GB"), (2e13, "20.0 TB")]
)
def test_sizes_for_people(count: float, shown: str) -> None:
    assert units.size(count) == shown


def test_plain_lines_and_colours(capsys: pytest.CaptureFixture[str]) -> None:
    failed = Event("convert x", "failed", "broke\nbadly", 1.25)
    for manner in (console.Voice(), console.Voice(colour=True), console.Voice(quiet=True), console.Voice(verbose=True)):
        with console.reporting(manner) as show:
            for event in (
                Event("s", "started"),
                Event("s", "progress", "1%"),
                Event("s", "done", "", 2.0),
                Event("l", "note", "moved"),
                failed,
            ):
                show(event)
    err = capsys.readouterr().err
    assert err.count("failed  convert x (1.2 s) broke\n") == 3 and "\x1b[31mfailed  \x1b[0mconvert x" in err
    assert err.count("done    s (2.0 s)\n") == 2 and err.count("note: moved") == 3 and err.count("s: 1%") == 1


def test_a_terminal_is_redrawn(capsys: pytest.CaptureFixture[str]) -> None:
    with console.reporting(console.Voice(live=True)) as show:
        for status in ("started", "progress", "done", "ended"):
            show(Event("fetch m", status, "12 of 24 MB"))
        show(Event("lock", "note", "moved"))
    assert "done    fetch m" in capsys.readouterr().err


@pytest.mark.parametrize(("environ", "colour"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_the_voice_fits_the_stream(environ: dict[str, str], colour: bool) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert console.voice(Terminal(), environ, quiet=False, verbose=False, progress=True).colour is colour
    assert not console.voice(io.StringIO(), environ, quiet=False, verbose=False, progress=True).live
