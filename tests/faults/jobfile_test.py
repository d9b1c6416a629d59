"""Faults of the job file, 1 to 17: each is told with its place and the way out, before anything is made or downloaded."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamacpp_orchestrator.pipeline import receipt
from tests.support.answer import Answer
from tests.support.rights import somebody

Orchestrate = Callable[..., Answer]
Job = Callable[..., Path]
Told = Callable[..., str]

HEAD = "version: 1\nllama_cpp: {tag: b11434}\n"
GOOD = HEAD + "models: [./model]\n"
MODEL = HEAD + "models:\n  - source: ./model\n"
LONGEST_TEXT = 400  # what a message with all its hints may have: no value of the file is told at length

ELSEWHERE = {
    6: "convert/quantize_test.py::test_many_types_from_a_temporary_file_with_a_matrix",  # a number in quotes is the number
}

TEXTS = {
    "1 empty file": "",
    "1 only comments": "# nothing yet\n\n  # nor here\n",
    "1 only blanks": " \n\n",
    "1 only a mark": "---\n",
    "2 a list": "- source: ./model\n",
    "2 plain text": "models\n",
    "3 tab": MODEL + "\tname: x\n",
    "3 tab before a value": "version: 1\nllama_cpp:\n\ttag: b11434\n",
    "4 key twice": MODEL + "    quantize: [Q8_0]\n    name: x\n    quantize: [Q4_0]\n",
    "4 key twice in one line": HEAD + "models: [{source: ./model, name: x, name: y}]\n",
    "5 no": MODEL + "    name: no\n",
    "5 off in the name of an adapter": MODEL + "    loras: [{source: ./model, name: Off}]\n",
    "5 yes in a list": MODEL + "    outtype: [bf16, YES]\n",
    "5 on as a revision": HEAD + "models:\n  - source: a/b\n    revision: on\n",
    "5 true as a short form": MODEL + "    quantize: [Q8_0]\n    quality: true\n",
    "5 null": MODEL + "    name: null\n",
    "5 a tilde": GOOD + "output: ~\n",
    "6 threads": MODEL + "    threads: 1e3\n",
    "6 an exponent": MODEL + "    quantize: [Q8_0]\n    imatrix: {text: words.txt, chunks: 1e3}\n",
    "6 an underscore": MODEL + "    quantize: [Q8_0]\n    imatrix: {text: words.txt, chunks: 1_0}\n",
    "6 a leading zero": MODEL + "    quantize: [Q8_0]\n    quality: {text: words.txt, minutes: 010}\n",
    "6 a fraction": "version: 1.0\n" + GOOD.partition("\n")[2],
    "7 unknown key": MODEL + "    quantz: [Q8_0]\n",
    "7 unknown key at the top": HEAD + "modles: [./model]\n",
    "7 a long unknown key": MODEL + f"    {'quantize' * 60}: [Q8_0]\n",
    "8 an anchor": "a: &a [x]\n",
    "8 an alias": "a: [x]\nb: *a\n",
    "9 nested brackets": "version: " + "[" * 20,
    "9 a long number": "version: " + "1" * 100 + "\n" + GOOD.partition("\n")[2],
    "9 a long word for yes or no": MODEL + f"    ollama: {'y' * 100}\n",
    "9 a date": "version: 2024-13-45\n" + GOOD.partition("\n")[2],
    "9 a bracket left open": HEAD + "models: [./model\n",
    "9 a sign that YAML keeps": MODEL + "    name: @x\n",
    "9 too large": GOOD + "#" * 70_000,
    "9 half a character": GOOD + 'output: "\\ud800"\n',
    "9 half a character in a key": GOOD + '"\\udfff": x\n',
    "9 a control character": GOOD + "output: \x07\n",
    "10 utf-16": GOOD.encode("utf-16"),
    "10 latin-1": (GOOD + "output: caf\xe9\n").encode("latin-1"),
    "11 two documents": GOOD + "---\n" + GOOD,
    "11 both sides of a merge": f"<<<<<<< HEAD\n{GOOD}=======\nmodels: [./other]\n>>>>>>> theirs\n",
    "12 python tag": "version: !!python/tuple [1]\n" + GOOD.partition("\n")[2],
    "12 a tag of its own": MODEL + "    name: !secret x\n",
    "14 two outputs": MODEL + "    name: x\n  - source: ./model\n    name: x\n",
    "14 two outputs by case": MODEL + "    name: x\n  - source: ./model\n    name: X\n",
    "14 two outputs by a dot": MODEL + "    outfile: ./a.gguf\n  - source: ./model\n    outfile: a.gguf\n",
    "14 two outputs by a link": MODEL + "    outfile: one/a.gguf\n  - source: ./model\n    outfile: two/a.gguf\n",
    "15 below a file": GOOD + "output: words.txt/dist\n",
    "15 a file": GOOD + "output: words.txt\n",
    "17 dots": MODEL + "    outfile: ../{name}.gguf\n",
    "17 dots in a name": MODEL + "    name: ../x\n",
    "17 nul": MODEL + '    name: "x\\0y"\n',
    "17 nul in a file name": MODEL + '    outfile: "x\\0.gguf"\n',
    "17 nul in a folder": GOOD + 'output: "x\\0y"\n',
    "17 256 bytes": MODEL + f"    outfile: {'x' * 251}.gguf\n",
    "17 256 bytes in a folder": MODEL + f"    outfile: {'x' * 256}/{{name}}.gguf\n",
    "17 256 bytes of output": GOOD + f"output: {'x' * 256}\n",
}


SOUND = {
    "5 in quotes": MODEL + "    name: 'no'\n",
    "5 what yes and no are for": MODEL + "    name: x\n    ollama: true\n    trust_remote_code: False\n",
    "5 nothing where nothing may be": GOOD + "environment: {path: ~}\n",
    "10 a byte order mark": b"\xef\xbb\xbf" + GOOD.encode(),
}


@pytest.fixture
def place(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a source, a text, and two names for one folder of outputs; its cache is not there yet."""
    monkeypatch.setenv("ORCHESTRATE_CACHE_DIR", str(world.parent / "cache"))
    (world / "model").mkdir()
    (world / "words.txt").write_text("words\n", encoding="utf-8")
    (world / "dist" / "one").mkdir(parents=True)
    if os.name != "nt":
        (world / "dist" / "two").symlink_to("one")
    return world


def listed(place: Path) -> dict[str, bytes]:
    """Everything beside the job file, and below the cache."""
    found = [path for root in (place, place.parent / "cache") for path in root.rglob("*") if path.name != "job.yaml"]
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in found}


@pytest.mark.parametrize("fault", TEXTS)
def test_a_faulty_job_is_told_and_nothing_is_made(fault: str, place: Path, orchestrate: Orchestrate, told: Told) -> None:
    if os.name == "nt" and "link" in fault:
        pytest.skip("links need a right there")
    text, file = TEXTS[fault], place / "job.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    before, began = listed(place), time.process_time()
    said = told(fault, orchestrate("run", "job.yaml"), code=2)
    ended = time.process_time()
    assert len(said) < LONGEST_TEXT and "job.yaml" in said and "hint: " in said and listed(place) == before
    file.write_text(GOOD, encoding="utf-8")
    assert orchestrate("run", "job.yaml", "--locked").code == 3, "the corrected job is read, and its lock is what lacks"
    # As a multiple of what a sound job takes: on a busy machine a processor's second is shorter.
    assert ended - began < max(1, 20 * (time.process_time() - ended))


@pytest.mark.parametrize("sound", SOUND)
def test_a_sound_job_is_read(sound: str, place: Path, orchestrate: Orchestrate) -> None:
    text = SOUND[sound]
    (place / "job.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert orchestrate("run", "job.yaml", "--locked").code == 3


@pytest.mark.parametrize("text", ["1_0", "1e1", "0", "-1", "٣", " 2"])
def test_6_a_number_of_the_command_line_is_written_in_digits(
    text: str, place: Path, orchestrate: Orchestrate, told: Told
) -> None:
    (place / "job.yaml").write_text(GOOD, encoding="utf-8")
    told(f"6 --jobs {text.strip()}", orchestrate("run", "job.yaml", "--jobs", text), code=2)
    assert orchestrate("run", "job.yaml", "--jobs", "2", "--locked").code == 3


@pytest.mark.skipif(os.name == "nt", reason="has no such files")
def test_13_a_pipe_is_no_job_file(place: Path, orchestrate: Orchestrate, told: Told) -> None:
    os.mkfifo(place / "pipe.yaml")
    told("13 a pipe", orchestrate("run", "pipe.yaml"), code=2)


@pytest.mark.skipif(os.name == "nt", reason="has no such files")
@pytest.mark.parametrize("command", ["run", "plan", "lock", "setup", "doctor", "bundle -o x.tar", "exec x"])
def test_13_an_open_file_is_no_job_file(command: str, place: Path, orchestrate: Orchestrate, told: Told) -> None:
    (place / "job.yaml").write_text(GOOD, encoding="utf-8")
    with (place / "job.yaml").open("rb") as file:
        number = f"/dev/fd/{file.fileno()}"
        (place / "linked.yaml").symlink_to(number)
        before, (name, *words) = listed(place), command.split()
        for job in (number, "linked.yaml", "-"):
            said = told("13 an open file", orchestrate(name, job, *words), code=2).replace(number, "N")
            assert "an open file by its number, not a job file" in said and listed(place) == before


@pytest.mark.skipif(os.name == "nt", reason="has no such files")
def test_13_a_pipe_beside_a_job_is_not_waited_for(place: Path, orchestrate: Orchestrate, told: Told) -> None:
    os.mkfifo(place / "pipe.yaml")
    (place / "job.yaml").write_text(MODEL + "    quantize: [Q4_0]\n    imatrix: pipe.yaml\n", encoding="utf-8")
    answer = orchestrate("plan")
    assert "job.yaml is the only one in this folder" in answer.err
    told("13 a pipe for a matrix", answer, code=2)


@pytest.mark.skipif(os.name == "nt", reason="has no such files")
@pytest.mark.parametrize("command", ["init", "convert ./model --force --write-job", "bundle job.yaml --force -o"])
def test_13_no_file_takes_the_place_of_a_pipe(command: str, place: Path, orchestrate: Orchestrate, told: Told) -> None:
    (place / "job.yaml").write_text(GOOD, encoding="utf-8")
    os.mkfifo(place / "pipe")
    said = told("13 a pipe to write", orchestrate(*command.split(), "pipe"), code=2)
    assert "pipe is a folder, a pipe or a device" in said and (place / "pipe").is_fifo()


@pytest.mark.parametrize("fault", ["13 missing", "13 a folder", "13 a folder above is missing", "13 below a file"])
def test_13_a_job_file_that_is_none(fault: str, place: Path, orchestrate: Orchestrate, told: Told) -> None:
    names = {"13 missing": "job.yaml", "13 a folder": "model", "13 a folder above is missing": "no/job.yaml"}
    before = listed(place)
    told(fault, orchestrate("run", names.get(fault, "words.txt/job.yaml")), code=2)
    assert listed(place) == before
    (place / "job.yaml").write_text(GOOD, encoding="utf-8")
    assert orchestrate("run", "job.yaml", "--locked").code == 3


def nameless(answer: Answer, place: Path) -> Answer:
    """An answer without the name of a folder, which is another each time."""
    return Answer(answer.code, answer.out, answer.err.replace(str(place), "<open>"))


@pytest.fixture
def open_place(orchestrate: Orchestrate, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that every user can reach, with a job and its source."""
    if os.name == "nt":
        pytest.skip("other rights there")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        (folder / "model").mkdir()
        (folder / "job.yaml").write_text(GOOD, encoding="utf-8")
        assert orchestrate("run", folder / "job.yaml", "--locked").code == 3, "what it imports is there for everybody now"
        monkeypatch.setenv("ORCHESTRATE_CACHE_DIR", str(folder / "cache"))
        monkeypatch.setenv("ORCHESTRATE_CONFIG", os.devnull)
        yield folder
        folder.chmod(0o777)


@pytest.mark.parametrize(("fault", "closed"), [("13 unreadable", "job.yaml"), ("13 below an unreadable folder", ".")])
def test_13_a_job_file_that_may_not_be_read(
    fault: str, closed: str, open_place: Path, orchestrate: Orchestrate, told: Told
) -> None:
    (open_place / closed).chmod(0)
    with somebody():
        answer = orchestrate("run", open_place / "job.yaml", "--locked")
    told(fault, nameless(answer, open_place), code=2)
    (open_place / closed).chmod(0o777)
    with somebody():
        assert orchestrate("run", open_place / "job.yaml", "--locked").code == 3


@pytest.mark.parametrize("output", ["closed", "closed/below"])
def test_15_a_folder_of_outputs_that_may_not_be_written(
    output: str, open_place: Path, orchestrate: Orchestrate, told: Told
) -> None:
    file = open_place / "job.yaml"
    file.write_text(f"{GOOD}output: {output}\n", encoding="utf-8")
    (open_place / "closed").mkdir(mode=0o555)
    with somebody():
        answer = orchestrate("run", file, "--locked")
    told(f"15 {output}", nameless(answer, open_place))
    assert not (open_place / "cache").exists() and not list((open_place / "closed").iterdir())
    (open_place / "closed").chmod(0o777)
    with somebody():
        assert orchestrate("run", file, "--locked").code == 3


@pytest.mark.parametrize("fault", ["16 a folder", "16 a folder in place of the receipt"])
def test_16_a_folder_where_a_file_is_to_be(
    fault: str, world: Path, job: Job, data: Path, orchestrate: Orchestrate, told: Told
) -> None:
    file = job({"source": str(data / "tiny-llama"), "outtype": "f16"})
    assert orchestrate("lock", file).code == 0
    way = world / "dist" / ("tiny-llama-f16.gguf" + (receipt.SUFFIX if "receipt" in fault else ""))
    way.mkdir(parents=True)
    told(fault, orchestrate("run", file), code=2)
    assert list((world / "dist").rglob("*")) == [way]
    way.rmdir()
    assert orchestrate("run", file).code == 0


def test_14_two_outputs_of_two_jobs(place: Path, orchestrate: Orchestrate, told: Told) -> None:
    for name in ("job.yaml", "other.yaml"):
        (place / name).write_text(GOOD, encoding="utf-8")
    before = listed(place)
    told("14 two outputs of two jobs", orchestrate("run", "job.yaml", "other.yaml"), code=2)
    assert listed(place) == before
    (place / "other.yaml").write_text(GOOD + "output: elsewhere\n", encoding="utf-8")
    assert orchestrate("run", "job.yaml", "./job.yaml", "other.yaml", "--locked").code == 3


def test_15_17_a_name_of_250_bytes_in_a_folder_that_is_not_there_yet(
    world: Path, job: Job, data: Path, orchestrate: Orchestrate
) -> None:
    asked = {"name": "n" * 191, "outtype": "f16", "outfile": "é" * 25 + "{name}-{type}.gguf"}
    assert orchestrate("run", job({"source": str(data / "tiny-llama"), **asked}, output="new/below")).code == 0
    [made] = (world / "new" / "below").glob("*.gguf")
    assert len(made.name.encode()) == 250 and orchestrate("verify", made).code == 0
