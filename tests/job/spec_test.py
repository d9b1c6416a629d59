"""The job file: what is accepted, what it means, and how each mistake is told."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import msgspec
import pytest

from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.job import by_option
from llamacpp_orchestrator.job import layout
from llamacpp_orchestrator.job import loader
from llamacpp_orchestrator.job import spec

FILE = Path("job.yaml")
HEAD = "version: 1\nllama_cpp: {tag: b11434}\n"


def parse(text: str) -> spec.Job:
    return loader.parse(text.encode(), FILE)


def model(text: str) -> spec.Model:
    return parse(f"{HEAD}models:\n  - {text}\n").models[0]


def complaint(text: str | bytes) -> str:
    with pytest.raises(JobError) as caught:
        loader.parse(text if isinstance(text, bytes) else text.encode(), FILE)
    return "\n".join(caught.value.lines())


def test_starter_parses_as_it_is() -> None:
    job = parse(loader.STARTER)
    assert [output.path.name for output in layout.outputs(job, Path("/work"))] == [
        "SmolLM2-135M-Instruct-bf16.gguf",
        "SmolLM2-135M-Instruct-Q8_0.gguf",
    ]


def test_the_whole_of_a_job() -> None:
    job = parse(
        """\ufeffversion: 1
llama_cpp: {tag: 0123456789012345678901234567890123456789, repo: "ssh://git@example.org/llama.cpp"}
binaries: {backend: cuda, cuda: 12.4}
environment: {python: 3.10, torch: cu128, overrides: ["torch==2.13.0"], path: null}
models:
  - source: org/Model@refs/pr/1
    outtype: [f16, q8_0]
    outfile: sub/{name}.{type}.gguf
    quantize: [Q4_K_M]
    args: [--split-max-size, 4G]
    trust_remote_code: TRUE
    loras: [./adapters/bot, {source: a/b, name: "no", outtype: [f32, f16]}]
"""
    )
    assert (job.binaries.cuda, job.environment.python, job.environment.path, job.output) == ("12.4", "3.10", None, "dist")
    [found] = job.models
    assert (found.source, found.revision, found.name, found.trust_remote_code) == ("org/Model", "refs/pr/1", "Model", True)
    assert [(lora.source, lora.name, lora.outtype) for lora in found.loras] == [
        ("./adapters/bot", "bot", ("f16",)),
        ("a/b", "no", ("f32", "f16")),
    ]
    made = layout.outputs(job, Path("/work"))
    root = Path(os.path.abspath("/work")) / "dist"
    assert [(output.kind, output.type, output.path.relative_to(root).as_posix()) for output in made] == [
        ("model", "f16", "sub/Model.f16.gguf"),
        ("model", "q8_0", "sub/Model.q8_0.gguf"),
        ("quantized", "Q4_K_M", "sub/Model.Q4_K_M.gguf"),
        ("adapter", "f16", "Model-bot-lora-f16.gguf"),
        ("adapter", "f32", "Model-no-lora-f32.gguf"),
        ("adapter", "f16", "Model-no-lora-f16.gguf"),
    ]
    assert made[0].lora is None and made[3].lora == found.loras[0]


@pytest.mark.parametrize(
    ("one", "several"),
    [
        ("models: a/b", "models: [a/b]"),
        ("models: {source: a/b, name: x}", "models: [{source: a/b, name: x}]"),
        ("models:\n  source: a/b@v1\n  outtype: f16", "models:\n- source: a/b@v1\n  outtype: [f16]"),
        ("models: {source: a/b, quantize: Q4_K_M}", "models: [{source: a/b, quantize: [Q4_K_M]}]"),
        ("models: {source: a/b, loras: ./x}", "models: [{source: a/b, loras: [./x]}]"),
        ("models: {source: a/b, loras: ./my adapter}", "models: [{source: a/b, loras: [./my adapter]}]"),
        (
            "models: {source: a/b, loras: {source: ./x, outtype: f32}}",
            "models: [{source: a/b, loras: [{source: ./x, outtype: f32}]}]",
        ),
        ("models: {source: a/b, merge: ./x@y}", "models: [{source: a/b, merge: [./x@y]}]"),
        ("models: {source: a/b, merge: c/d@v1}", "models: [{source: a/b, merge: [{source: c/d, revision: v1}]}]"),
        ("models: {source: a/b, mmproj: f16}", "models: [{source: a/b, mmproj: [f16]}]"),
        ("models: {source: a/b, args: --split-max-size 2G}", "models: [{source: a/b, args: [--split-max-size, 2G]}]"),
        ("models: a/b\nenvironment: {overrides: torch==2.13.0}", "models: [a/b]\nenvironment: {overrides: [torch==2.13.0]}"),
    ],
)
def test_one_stands_for_a_list_of_one(one: str, several: str) -> None:
    assert parse(HEAD + one) == parse(HEAD + several)


def test_a_merged_model_bears_the_names_of_its_adapters() -> None:
    adapters = "[./x/, {source: c/d@v2, weight: -0.25}, {source: ../e, name: bot, weight: 1.5}]"
    merged = model(f"{{source: a/b, merge: {adapters}}}")
    assert merged.name == "b-x-d-bot" and [adapter.weight for adapter in merged.merge] == [1.0, -0.25, 1.5]
    assert model(f"{{source: a/b, name: mine, merge: {adapters}}}").name == "mine"


def test_none_makes_adapters_only() -> None:
    job = parse(HEAD + "models: [{source: a/b, outtype: none, loras: [./x]}]")
    assert [output.path.name for output in layout.outputs(job, Path())] == ["b-x-lora-f16.gguf"]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("org/Name.v1", "Name.v1"),
        ("./some/folder/", "folder"),
        ("./some/../other", "other"),
        (".", Path.cwd().name),
        ("..", Path.cwd().parent.name),
        ("~/models/x", "x"),
        ("/abs/y", "y"),
        (f"~/.cache/huggingface/hub/models--org--Some--Name/snapshots/{'0a' * 20}", "Some--Name"),
        (f"/c/models--org--Name.v1/snapshots/{'0a' * 20}/", "Name.v1"),
        (f"/c/models--org--Name/snapshots/{'0a' * 20}/adapter", "adapter"),
        (f"/c/snapshots/{'0a' * 20}", "0a" * 20),
        ("/c/models--org--Name", "models--org--Name"),
        ("'.\\models\\z'", "z"),
        ("./with@sign", "with@sign"),
    ],
)
def test_default_names(source: str, name: str) -> None:
    assert model(source).name == name


@pytest.mark.parametrize(
    ("source", "answer"),
    [("./x", True), ("../x", True), ("~", True), ("/x", True), ("C:\\x", True), ("C:/x", True), ("a\\b", True), (".", True)]
    + [("org/name", False), ("name", False), (".hidden/x", False), ("", False)],
)
def test_is_folder(source: str, answer: bool) -> None:
    assert spec.is_folder(source) is answer


def test_folder(tmp_path: Path) -> None:
    assert spec.folder("./a", tmp_path) == tmp_path / "a"
    assert spec.folder(str(tmp_path), Path("elsewhere")) == tmp_path
    assert spec.folder("~/x", tmp_path) == Path.home() / "x"
    assert spec.folder(".\\a\\b", tmp_path) == tmp_path / "a" / "b"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "job.yaml: the file is empty"),
        ("# only this\n", "the file is empty"),
        ("- a\n", "job.yaml:1: expected keys with values, found a list"),
        ("plain", "job.yaml:1: expected keys with values, found text"),
        ("version: 1\n\tx: 1\n", "job.yaml:2:1: not YAML: found character '\\t'"),
        ("a: [1", "job.yaml:1:6: not YAML"),
        ("a: \x01", "a control character"),
        ("a: &x 1", "job.yaml:1:4: anchors and aliases"),
        ("a: *x", "job.yaml:1:4: anchors and aliases"),
        ("&k a: 1", "job.yaml:1:1: anchors and aliases"),
        ("!!str a: 1", "job.yaml:1:1: the tag !!str is not taken"),
        ("a: !!python/tuple [1]", "job.yaml:1:4: the tag"),
        ("a: 1\n---\nb: 1\n", "job.yaml:2:1: a second document"),
        ("? [a, b]\n: 1\n", "a key must be plain text"),
        ("a: " + "[" * 20, "job.yaml:1:16: nested more than 12 deep"),
        ("- " * 20, "nested more than 12 deep"),
        ("x" * 70_000, "70000 bytes"),
        (HEAD.encode("utf-16"), "job.yaml:1: the file is not UTF-8"),
        ("a: 1\nb: \xe9".encode("latin-1"), "job.yaml:2: the file is not UTF-8"),
        (HEAD + HEAD + "models: [a/b]", "the key stands twice, on line 1 and on line 3"),
        ("version: 1\nmodels: [a/b]\n", "job.yaml:1: llama_cpp: missing"),
        ("version: 1\nllama_cpp:\n  repo: https://x.org/y\nmodels: [a/b]\n", "job.yaml:2: llama_cpp.tag: missing"),
        ("version: 2\nllama_cpp: {tag: b1}\nmodels: [a/b]\n", 'job.yaml:1: version: expected 1, found "2"'),
        (HEAD + "modles: [a/b]\n", 'job.yaml:3: modles: unknown key; did you mean "models"?'),
        (HEAD + "zzz: 1\nmodels: [a/b]", "known: version, llama_cpp, models, binaries"),
        (HEAD + "models: {}\n", "job.yaml:3: models: expected a list, found keys with values"),
        (HEAD + "models: []\n", "expected at least one model"),
        (HEAD + "models: [~]\n", "models[0]: expected keys with values, found nothing"),
        (HEAD + "models: [a/b]\noutput: ''\n", "output: expected a folder"),
        (HEAD + "models: [a/b]\nbinaries: {backend: vulcan}\n", 'unknown value "vulcan"; did you mean "vulkan"?'),
        (HEAD + "models: [a/b]\nbinaries: {cuda: latest}\n", "expected auto or a version such as 12.4"),
        (HEAD + "models: [a/b]\nenvironment: {python: '2.7'}\n", "expected auto or a version such as 3.11"),
        (HEAD + "models: [a/b]\nenvironment: {torch: gpu}\n", "expected cpu, cu128, rocm6.4 or upstream"),
        (HEAD + "models: [a/b]\nenvironment: {overrides: [torch=2]}\n", "overrides[0]: expected a requirement"),
        ("version: 1\nllama_cpp: {tag: --upload-pack=x}\nmodels: [a/b]", "expected a release tag such as b11434"),
    ],
)
def test_complaints_of_the_file(text: str | bytes, said: str) -> None:
    began = time.process_time()
    assert said in complaint(text)
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("repo", "said"),
    [
        ("https://u:secret@x.org/y", "holds a credential"),
        ("https://token@x.org/y", "holds a credential"),
        ("ext::sh -c x", "expected a URL with https"),
        ("https://", "expected a URL"),
        ("https://[x", "not a URL"),
        ("https://x.org/a b", "holds no space"),
    ],
)
def test_complaints_of_the_repo(repo: str, said: str) -> None:
    found = complaint(f"version: 1\nllama_cpp:\n  tag: b1\n  repo: '{repo}'\nmodels: [a/b]")
    assert said in found and "job.yaml:4: llama_cpp.repo" in found and "secret" not in found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("source: a/b\n    quantz: [x]", 'job.yaml:5: models[0].quantz: unknown key; did you mean "quantize"?'),
        ("revision: main", "models[0].source: missing"),
        ("source: nothing", "neither a hub id (org/name) nor a folder"),
        ("source: a/b/c", "neither a hub id"),
        ("source: a/../b", "neither a hub id"),
        ("source: https://me:pw@hf.co/a/b", 'models[0].source: "https://hf.co/a/b" is an address; write a/b'),
        ("source: ['a/b']", "expected text, found a list"),
        ("source: a/b@", "models[0].revision: expected a branch"),
        ("source: a/b@v1\n    revision: v2", 'the source says "v1" already'),
        ("source: ./x\n    revision: v2", "a folder has no revisions"),
        ("source: a/b\n    revision: --x", "expected a branch"),
        ("source: a/b\n    revision: [v1]", "as text without blanks: main, v1.0, or a commit's 40 digits"),
        ("source: a/b\n    revision: {v1: 2}", "as text without blanks: main"),
        ("source: a/b\n    revision: my branch", "as text without blanks: main"),
        ("source: a/b\n    outtype: b/f16", "expected a type such as bf16"),
        ("source: a/b\n    outtype: []", "expected at least one type"),
        ("source: a/b\n    outtype: none", "`none` stands alone"),
        ("source: a/b\n    outtype: [none, f16]", "`none` stands alone"),
        ("source: a/b\n    outtype: none\n    loras: [./x]\n    quantize: [Q8_0]", "`none` stands alone"),
        ("source: a/b\n    quantize: Q4_0, Q8_0", 'quantize: expected a type such as bf16, found "Q4_0, Q8_0"'),
        ("source: a/b\n    quantize: {Q4_0: true}", "quantize: expected text, found keys with values"),
        ("source: a/b\n    verify: contents", "content"),
        ("source: a/b\n    verify: load\nbinaries: {backend: none}", "`load` needs the tag's programs"),
        ("source: a/b\n    trust_remote_code: no", 'expected true or false, found "no"'),
        ("source: a/b\n    loras: [{source: ./x, outtype: none}]", "loras[0].outtype: expected at least one type"),
        ("source: a/b\n    merge: x", 'job.yaml:5: models[0].merge[0].source: "x" is neither'),
        ("source: a/b\n    merge:\n      source: ./x\n      outtype: f16", "job.yaml:7: models[0].merge[0].outtype: unknown key"),
        ("source: a/b\n    merge: {source: ./x, weight: 0}", 'weight: expected a number other than 0, such as 0.5, found "0"'),
        ("source: a/b\n    merge: {source: ./x, weight: -0.00}", "expected a number other than 0"),
        ("source: a/b\n    merge: {source: ./x, weight: 5e-1}", "write it as a decimal number: 0.5, not 5e-1"),
        ("source: a/b\n    merge: {source: ./x, weight: nan}", "expected a number other than 0"),
        (
            "source: a/b\n    merge: ./x\n    outtype: none\n    loras: ./y",
            "nothing is made of the merged model: outtype is none",
        ),
        ("source: a/b\n    keep_merged: true", "models[0].keep_merged: nothing is merged"),
        ("source: a/b\n    loras: [5]", 'job.yaml:5: models[0].loras[0].source: "5" is neither'),
        ("source: a/b\n    loras: x", 'job.yaml:5: models[0].loras[0].source: "x" is neither'),
        ("source: a/b\n    loras:\n      source: ./x\n      typ: f16", "job.yaml:7: models[0].loras[0].typ: unknown key"),
        ("source: a/b\n    loras:\n      source: ./x\n      name: no", "job.yaml:7: models[0].loras[0].name: no without quotes"),
        ("source: a/b\n    args: --split-max-size 2G --outfile x", "the job sets --outfile"),
        ("source: a/b\n    args: [--outfile=x]", "the job sets --outfile"),
        ("source: a/b\n    args: [--outt, x]", "--outt is not yours to give: the job sets --outtype"),
        ("source: a/b\n    loras: [{source: ./x, args: [--base, y]}]", "the job sets --base"),
        ("source: a/b\n    outfile: '{name'", "not a template"),
        ("source: a/b\n    outfile: '{name.x}.gguf'", "unknown part {name.x}"),
        ("source: a/b\n    outfile: '{name}-{type}'", "ends with .gguf"),
        ("source: a/b\n    outfile: '../{name}.gguf'", "must stay in the output folder"),
        ("source: a/b\n    outfile: /tmp/x.gguf", "must stay in the output folder"),
        ("source: a/b\n    outfile: 'C:\\x.gguf'", "it holds ':'"),
        ("source: a/b\n    name: CON", "Windows keeps it for itself"),
        ("source: a/b\n    name: 'a/b'", "it holds '/'"),
        ("source: a/b\n    name: 'a.'", "ends with a dot"),
        ("source: a/b\n    name: -x", "begins with -"),
        (f"source: a/b\n    name: {'x' * 201}", "has 201 bytes"),
        (f"source: a/b\n    outfile: '{'{name}' * 100}.gguf'\n    name: {'x' * 100}", "at most 250 can be used"),
        (
            f"source: a/b\n    name: {'x' * 180}\n    outfile: '{'y' * 60}{{name}}.gguf'\n    args: [--split-max-size, 1G]",
            "at most 235",
        ),
        (
            "source: a/b\n    outtype: [f16, bf16]\n    outfile: '{name}.gguf'",
            "makes the file b.gguf, and so does models[0].outtype (line 5)",
        ),
        ("source: a/b\n    outtype: [f16, q8_0]\n    quantize: [Q8_0]", "makes the file b-Q8_0.gguf"),
        ("source: a/b\n    outtype: [f16, bf16]\n    outfile: '{name}.gguf'\n  - c/B", "set `name` or `outfile`"),
        ("a/b\n  - c/B", "job.yaml:5: models[1].outtype: makes the file B-bf16.gguf, and so does models[0].outtype (line 4)"),
    ],
)
def test_complaints_of_a_model(text: str, said: str) -> None:
    assert said in complaint(f"{HEAD}models:\n  - {text}\n")


def test_a_name_of_250_bytes_fits() -> None:
    found = model(f"source: a/b\n    name: {'x' * 195}\n    outfile: '{'y' * 50}{{name}}.gguf'")
    assert len(found.outfile.format(name=found.name, type="").encode()) == 250


@pytest.mark.parametrize(
    ("keys", "third"),
    [
        (0, "job.yaml:4: output: expected"),
        (1, "and 2 more, the next in line 4"),
        (10, "and 11 more, the next in line 4"),
    ],
)
def test_the_first_complaints_are_told_in_order_and_the_others_counted(keys: int, third: str) -> None:
    found = complaint(HEAD + "models: [x, y]\noutput: [1]\n" + "".join(f"key{n}: 1\n" for n in range(keys))).splitlines()
    assert found[0].startswith("job.yaml:3: models[0].source") and found[1].startswith("job.yaml:3: models[1].source")
    assert len(found) == 4 and found[2].startswith(third) and found[3].startswith("hint: ")


@pytest.mark.parametrize("key", ["a[b", "[0]", ".", "a.b[", "x]"])
def test_odd_keys_are_told_too(key: str) -> None:
    assert "unknown key" in complaint(f"{HEAD}models: [a/b]\n'{key}': 1\n")


def test_load(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    for path, said in ((file, "no such file"), (tmp_path, "is a folder, not a job file")):
        with pytest.raises(JobError, match=said):
            loader.load(path)
    file.write_text(HEAD + "models:\n- source: ./m\n  loras: [./l]\nenvironment: {path: venv}\noutput: job.yaml\n")
    with pytest.raises(JobError) as caught:
        loader.load(file)
    lines = caught.value.message.splitlines()
    assert [line.split(": ")[1] for line in lines[:2]] == ["models[0].source", "models[0].loras[0].source"]
    assert f"{file}:4: " in lines[0] and "does not exist" in lines[0] and lines[2:] == ["and 2 more, the next in line 6"]
    (tmp_path / "m").mkdir()
    with pytest.raises(JobError) as caught:
        loader.load(file)
    lines = caught.value.message.splitlines()
    assert [line.split(": ")[1] for line in lines] == ["models[0].loras[0].source", "environment.path", "output"]
    assert "is not a folder" in lines[2]
    for name in ("l", "venv"):
        (tmp_path / name).mkdir()
    file.write_text(file.read_text().replace("job.yaml", "dist"))
    assert loader.load(file).models[0].name == "m"
    (tmp_path / "m").rmdir()
    with pytest.raises(JobError, match=r"models\[0\].source"):
        loader.check_folders(parse(file.read_text()), file)


def test_schema_knows_every_key_and_short_form() -> None:
    found = json.loads(json.dumps(loader.schema()))["$defs"]
    for part in (spec.Job, spec.Model, spec.Imatrix, spec.Lora, spec.Merge, spec.LlamaCpp, spec.Binaries, spec.Environment):
        keys = found[part.__name__]["properties"]
        assert list(keys) == [field.name for field in msgspec.structs.fields(part)]
        assert all(key.get("description") for key in keys.values())
        assert found[part.__name__]["additionalProperties"] is False
    assert found["Binaries"]["properties"]["backend"]["enum"] == list(spec.BACKENDS)
    for short, whole in (found["Job"]["properties"]["models"]["anyOf"], found["Model"]["properties"]["loras"]["anyOf"]):
        assert short == whole["items"] and short["anyOf"][0] == {"type": "string"} and whole["type"] == "array"
    assert [one["type"] for one in found["Model"]["properties"]["outtype"]["anyOf"]] == ["string", "array"]


def job_text(folder: Path, **asked: object) -> str:
    return by_option.job_text(by_option.Typed(**{"model": "a/b", **asked}), folder)  # type: ignore[arg-type]


def test_the_text_of_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bare").mkdir()
    text = job_text(tmp_path / "jobs", model="bare", loras=("./no", "a/b@v1"), outtypes=("f16",), quantize=("Q8_0",), tag="b1")
    job = loader.parse(text.encode(), tmp_path / "jobs" / "job.yaml")
    [found] = job.models
    assert (found.source, found.name, found.outtype, found.quantize) == ("../bare", "bare", ("f16",), ("Q8_0",))
    assert [(lora.source, lora.name, lora.revision) for lora in found.loras] == [("../no", "no", "main"), ("a/b", "b", "v1")]
    assert (job.output, job.llama_cpp.tag) == ("../dist", "b1")
    job = loader.parse(job_text(tmp_path).encode(), tmp_path / "job.yaml")
    assert (job.output, job.llama_cpp.tag, job.models[0].source) == ("dist", spec.DEFAULT_TAG, "a/b")
    [model] = loader.parse(job_text(tmp_path, merge=("bare", "c/d@v2")).encode(), tmp_path / "job.yaml").models
    assert [(adapter.source, adapter.revision, adapter.weight) for adapter in model.merge] == [
        ("./bare", "main", 1.0),
        ("c/d", "v2", 1.0),
    ]
    assert model.name == "b-bare-d"
    assert "source: ./bare\n" in job_text(tmp_path, model="bare")
    assert f"source: {tmp_path}\n" in job_text(tmp_path, model=str(tmp_path)) or os.sep == "\\"
    assert "source: ~/x\n" in job_text(tmp_path, model="~/x")
