"""Models and adapters: the choice of files as tables, and a small hub on loopback with the faults that real ones have."""

from __future__ import annotations

import contextvars
import errno
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import msgspec
import pytest

from llamacpp_orchestrator.errors import IntegrityError
from llamacpp_orchestrator.errors import NetworkError
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.errors import Stopped
from llamacpp_orchestrator.models import hub
from llamacpp_orchestrator.models import hub_session
from llamacpp_orchestrator.models import remote_code as models_remote_code
from llamacpp_orchestrator.models import safetensors as models_safetensors
from llamacpp_orchestrator.models import selection
from llamacpp_orchestrator.models import view as models_view
from llamacpp_orchestrator.models import weight_files
from llamacpp_orchestrator.models.hub import HubFile
from llamacpp_orchestrator.models.hub import Snapshot
from llamacpp_orchestrator.models.selection import select_files
from llamacpp_orchestrator.models.weight_files import INDEX
from llamacpp_orchestrator.system.settings import Index
from llamacpp_orchestrator.system.settings import Settings
from llamacpp_orchestrator.util import cancel
from llamacpp_orchestrator.util.pointers import LFS
from tests.support import makers
from tests.support.stage.hub import COMMIT
from tests.support.stage.hub import LARGE
from tests.support.stage.hub import MODEL
from tests.support.stage.hub import OTHER
from tests.support.stage.hub import Hub
from tests.support.stage.hub import blob
from tests.support.stage.hub import safetensors

BASE = ("config.json", "model.safetensors", "tokenizer.json")


def nothing(text: str) -> None:
    """Progress that nobody watches."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "a" / "b" / "home"
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("HF_TOKEN", "hf_notforyou")
    monkeypatch.setattr(hub_session, "WAIT_SECONDS", 0.01)
    return home / "hub"


@pytest.fixture
def server(cache: Path) -> Iterator[Hub]:
    with Hub() as made:
        threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield made
        made.over.set()
        made.shutdown()


PLACE = hub_session.Place(endpoint="https://huggingface.co", repo_id="org/m", revision="main", trusted=True)


def settings(url: str) -> Settings:
    return Settings(cache=Path("unused"), huggingface=(url,), index=Index(index_urls=("http://127.0.0.1:9/simple",)))


def listed(server: Hub, repo: str = "org/m", **how: Any) -> Snapshot:
    wanted: dict[str, Any] = {"kind": "model", "weights": True, "remote_code": False, **how}
    return hub.list_hub(repo, "main", settings(server.url), nothing, **wanted)


def fetched(server: Hub, snapshot: Snapshot) -> dict[str, bytes]:
    folder = hub.fetch(snapshot, settings(server.url), nothing)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def select(
    *names: str, kind: str = "model", weights: bool = True, remote_code: bool = False, index: tuple[str, ...] = ()
) -> tuple[str, ...]:
    return select_files(names, source="org/m", kind=kind, weights=weights, remote_code=remote_code, index=index)


def test_an_adapter_to_merge_brings_its_tokenizer_and_what_its_training_began_with() -> None:
    own = ["adapter_config.json", "adapter_model.safetensors"]
    more = [
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "special_tokens_map.json",
        "tekken.json",
        "qwen.tiktoken",
    ]
    first = ["pissa_init/adapter_config.json", "pissa_init/adapter_model.safetensors"]
    strange = ["checkpoint-9/adapter_config.json", "checkpoint-9/adapter_model.safetensors", "optimizer.pt", "config.json"]
    names = [*own, *more, *first, *strange]
    assert select(*names, kind="merge") == tuple(sorted([*own, *more, *first]))
    assert select(*names, kind="adapter") == tuple(sorted(own))


@pytest.mark.parametrize(
    "name",
    [
        "generation_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.model",
        "tokenizer.model.v3",
        "spiece.model",
        "tekken.json",
        "sentencepiece.bpe.model",
        "qwen.tiktoken",
        "vocab.json",
        "merges.txt",
        "vocab.txt",
        "rwkv_vocab_v20230424.txt",
        "added_tokens.json",
        "tokenizer.jsonl",
        "special_tokens_map.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "chat_template.json",
        "additional_chat_templates/tool.jinja",
        "modules.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "README.md",
        "joint_head.safetensors",
    ],
)
def test_what_conversion_reads_is_taken(name: str) -> None:
    assert name in select(*BASE, name)
    assert (name in select(*BASE, name, weights=False)) is not name.endswith(".safetensors")


@pytest.mark.parametrize(
    "name",
    [
        "original/consolidated.00.pth",
        "original/params.json",
        "onnx/model.onnx",
        "openvino/config.json",
        "x.gguf",
        "modeling_x.py",
        "pytorch_model.bin",
        "consolidated.safetensors",
        "params.json",
        "model.fp16.safetensors",
        "model.fp32-00001-of-00002.safetensors",
        "training_args.bin",
        "flax_model.msgpack",
        "model.safetensors.index.fp32.json",
        "pytorch_model.bin.index.json",
        "adapter_model.safetensors",
        "LICENSE",
        ".gitattributes",
        "optimizer.pt",
        "coreml/model.safetensors",
        "1_Pooling/model.onnx",
        "README-de.md",
        "trainer_state.json",
        "m-f16.gguf.receipt.json",
        "m-quality.json",
    ],
)
def test_what_conversion_does_not_read_is_left(name: str) -> None:
    assert name not in select(*BASE, name)


def test_without_weights_no_weights() -> None:
    assert select("config.json", "tokenizer.json", "model.safetensors", INDEX, weights=False) == ("config.json", "tokenizer.json")


TWO = ("model-1-of-2.safetensors", "model-2-of-2.safetensors")


@pytest.mark.parametrize(
    ("names", "index", "expected"),
    [
        (("consolidated.safetensors", "params.json"), (), ("consolidated.safetensors", "params.json")),
        (("model.safetensors", "model-1-of-1.safetensors"), (), ("model.safetensors",)),
        (("model.safetensors", *TWO, INDEX), TWO, ("model.safetensors",)),
        (("model.safetensors", INDEX), ("model.safetensors",), ("model.safetensors", INDEX)),
        (("model.safetensors", "more.safetensors", INDEX), ("model.safetensors", "more.safetensors"), None),
        ((*TWO, "model_old.safetensors"), (), TWO),
        ((*TWO, "model-1-of-3.safetensors", INDEX), TWO, (*TWO, INDEX)),
        (("odd.safetensors", "mtp.safetensors", INDEX), ("odd.safetensors",), (INDEX, "odd.safetensors")),
        (("model_final.safetensors", "ema.safetensors"), (), ("model_final.safetensors",)),
        (("model.safetensors", "model_old.safetensors", "model.fp16.safetensors"), (), ("model.safetensors",)),
        (("model.fp16.safetensors",), (), ("model.fp16.safetensors",)),
        (("model_a.safetensors", "model_b.safetensors"), (), None),
        ((*TWO, "model.fp16-1-of-2.safetensors"), (), TWO),
        ((*TWO, "consolidated.safetensors", "original/model.safetensors", INDEX), TWO, (*TWO, INDEX)),
    ],
)
def test_weights_are_those_that_transformers_loads(
    names: tuple[str, ...], index: tuple[str, ...], expected: tuple[str, ...] | None
) -> None:
    found = select("config.json", *names, index=index)
    assert found == tuple(sorted(("config.json", *(names if expected is None else expected))))
    left = {name for name in (*names, "consolidated.00.pth") if name not in found and name.endswith((".safetensors", ".json"))}
    assert set(weight_files.unread(names, found)) == left - {"consolidated.safetensors", "original/model.safetensors"}


PAIR = ("pytorch_model-1-of-2.bin", "pytorch_model-2-of-2.bin")
PICKLE_INDEX = "pytorch_model.bin.index.json"


@pytest.mark.parametrize(
    ("names", "index", "expected"),
    [
        (("pytorch_model.bin", "pytorch_model_old.bin"), (), ("pytorch_model.bin",)),
        ((*PAIR, "pytorch_model_old.bin", PICKLE_INDEX), PAIR, (*PAIR, PICKLE_INDEX)),
        ((*PAIR, "pytorch_model.bin", PICKLE_INDEX), PAIR, ("pytorch_model.bin",)),
        ((*PAIR, "pytorch_model.fp16.bin"), (), PAIR),
        (("pytorch_model.fp16.bin",), (), ("pytorch_model.fp16.bin",)),
    ],
)
def test_pickles_are_those_that_transformers_loads(
    names: tuple[str, ...], index: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    chosen = select("config.json", *names, index=index, remote_code=True)
    assert chosen == tuple(sorted(("config.json", *expected)))
    assert set(weight_files.unread(names, chosen)) == set(names) - set(expected)


@pytest.mark.parametrize(
    ("names", "index_file"),
    [
        ((INDEX, PICKLE_INDEX), INDEX),
        ((PICKLE_INDEX, "pytorch_model.bin", "odd.safetensors"), PICKLE_INDEX),
        ((PICKLE_INDEX, "model.safetensors"), ""),
        (("original/" + INDEX,), ""),
    ],
)
def test_the_index_that_counts(names: tuple[str, ...], index_file: str) -> None:
    assert weight_files.index_name(names, remote_code=True) == index_file
    assert weight_files.index_name(names, remote_code=False) == index_file.replace(PICKLE_INDEX, "")


def test_what_is_not_read_is_named_but_for_what_is_known_to_be_the_same() -> None:
    known = ("consolidated.safetensors", "adapter_model.safetensors", "1_Dense/model.safetensors")
    assert weight_files.unread([*BASE, *known], BASE) == ()
    assert weight_files.unread(["config.json", *TWO], ["config.json"]) == (), "nothing is asked of weights that are not wanted"
    assert weight_files.note(()) == ""
    said = weight_files.note(("a.safetensors", "b.safetensors", "c.safetensors", "d.safetensors"))
    assert said.startswith("not read: a.safetensors, b.safetensors, c.safetensors and 1 more;")


def test_code_and_pickles_only_with_permission() -> None:
    names = (
        "config.json",
        "modeling.py",
        "sub/code.py",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "training_args.bin",
    )
    allowed = ("config.json", "modeling.py", "pytorch_model.bin", "pytorch_model.bin.index.json", "sub/code.py")
    assert select(*names, remote_code=True, index=("pytorch_model.bin",)) == allowed
    assert "pytorch_model.bin" not in select(*names, "model.safetensors", remote_code=True)
    assert "modeling.py" not in select(*names, "model.safetensors")


def test_adapter_files() -> None:
    names = ("adapter_config.json", "adapter_model.safetensors", "README.md", "tokenizer.json", "optimizer.pt", "own.py")
    chosen = ("README.md", "adapter_config.json", "adapter_model.safetensors")
    assert select(*names, kind="adapter") == chosen
    assert weight_files.unread([*names, "adapter_model_old.safetensors", "other.safetensors"], chosen) == (
        "adapter_model_old.safetensors",
    )


@pytest.mark.parametrize(
    ("names", "how", "message", "hint"),
    [
        ((), {}, "has no config.json; it is empty", "Transformers"),
        (("x.gguf",), {}, "has no config.json$", "GGUF"),
        (
            ("a/config.json", "a/model.safetensors", "b/config.json"),
            {},
            "but folders with one: a$",
            "--include 'a/*' --local-dir OUT",
        ),
        (
            ("de/adapter_config.json", "de/adapter_model.safetensors"),
            {"kind": "adapter"},
            "folders with one: de",
            "./OUT/de: hf down",
        ),
        (("model_index.json", "unet/config.json", "unet/model.safetensors"), {}, "has no config.json$", "Diffusers"),
        (("config.json", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"), {}, "has no weights", "outtype"),
        (("adapter_config.json", "adapter_model.safetensors"), {}, "is a LoRA adapter", "loras"),
        (("config.json", "adapter_config.json", "adapter_model.safetensors"), {}, "is a LoRA adapter", "loras"),
        (("config.json",), {}, "has no weights", "outtype: none"),
        (("config.json", "odd.safetensors"), {}, "has no weights", ""),
        (("config.json", "2_Dense/model.safetensors", INDEX), {}, "has no weights", ""),
        (("config.json", "pytorch_model.bin"), {}, "only as pickles \\(pytorch_model.bin\\)", "trust_remote_code: true"),
        (("config.json", "consolidated.00.pth"), {"remote_code": True}, "only as pickles", "safetensors"),
        (("config.json", "model-00001-of-00002.safetensors"), {}, "lacks model-00002-of-00002.safetensors, one of 2", "all"),
        (("config.json", *TWO, INDEX), {"index": TWO[:1]}, "and its index does not name model-2-of-2", "one save"),
        (("config.json", PAIR[0]), {"remote_code": True}, "lacks pytorch_model-2-of-2.bin, one of 2", "all"),
        (("config.json",), {"kind": "adapter"}, "has no adapter_config.json", "models"),
        (("adapter_config.json",), {"kind": "adapter"}, "has no adapter_model.safetensors$", "safetensors"),
        (("adapter_config.json", "adapter_model.bin"), {"kind": "adapter"}, "only adapter_model.bin \\(a pickle", "again"),
        ((*BASE, "README.md", "readme.md"), {}, "README.md and readme.md", "remove one"),
        ((*BASE, "Model.safetensors"), {}, "one file on many disks", "remove one"),
        *(
            ((*BASE, name), {}, "could leave its folder", "")
            for name in ("../x", "/nowhere/x", "C:x", "a\\b", "a//b", "a/../b", "a\nb")
        ),
    ],
)
def test_what_cannot_be_converted(names: tuple[str, ...], how: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(OrchestrateError, match=message) as caught:
        select(*names, **how)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "names",
    [
        ("model-1-of-1.safetensors", *TWO),
        ("model.bf16.safetensors", "model.fp16.safetensors"),
        ("model.fp16-1-of-1.safetensors", "model_old.safetensors"),
        ("consolidated.safetensors", "consolidated_old.safetensors"),
        ("pytorch_model_new.bin", "pytorch_model_old.bin"),
        ("pytorch_model-1-of-1.bin", *PAIR),
    ],
)
def test_two_sets_of_weights_are_both_named(names: tuple[str, ...]) -> None:
    with pytest.raises(OrchestrateError) as caught:
        select("config.json", *names, remote_code=True)
    assert f"more than one set of weights ({names[0]} and {names[1]}), and nothing says which is meant" in caught.value.message
    assert "a folder of its own" in caught.value.hint


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def folder_of(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def look(path: Path) -> Snapshot:
    return selection.list_folder(path, kind="model", weights=True, remote_code=False, sha256=digest)


def test_a_folder_is_pinned_by_content(tmp_path: Path) -> None:
    more = {"own.py": b"x", "checkpoint-1/optimizer.pt": b"x", "runs.2024": b"x", "1_Pooling/config.json": b"{}"}
    folder = folder_of(tmp_path / "model", {**MODEL, **more})
    found = look(folder)
    assert (found.source, found.commit) == (str(folder), "")
    assert [file.path for file in found.files] == [
        "1_Pooling/config.json",
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    for file in found.files:
        assert (file.size, file.sha256, file.oid) == ((folder / file.path).stat().st_size, digest(folder / file.path), "")


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(OrchestrateError, match="is not a folder"):
        look(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("index", "kind", "message"),
    [
        (
            b'{"weight_map": {"a": "model.safetensors", "b": "gone.safetensors"}}',
            OrchestrateError,
            "lacks 1 of 2 weight files: gone.saf",
        ),
        (b'{"weight_map": {"a": "model.safetensors"}}', None, ""),
        (b"{", IntegrityError, "is not an index"),
        (b"[]", IntegrityError, "is not an index"),
        (b'{"weight_map": []}', IntegrityError, "is not an index"),
        (b'{"weight_map": {}}', IntegrityError, "is not an index"),
    ],
)
def test_the_index_of_a_folder(tmp_path: Path, index: bytes, kind: type[OrchestrateError] | None, message: str) -> None:
    folder = folder_of(tmp_path, {**MODEL, INDEX: index})
    if kind is None:
        assert INDEX in [file.path for file in look(folder).files]
        return
    with pytest.raises(kind, match=message):
        look(folder)


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (safetensors("a"), None, ""),
        (safetensors("a")[:-1000], IntegrityError, r"is cut: its header says (\d+) bytes, it has (\d+)"),
        (safetensors("a") + b"x", IntegrityError, "is too long"),
        (LFS + b"v1\noid sha256:0\n", IntegrityError, "Git LFS pointer, not weights"),
        (b"", IntegrityError, r"\(0 bytes\) is not a safetensors file"),
        (bytes(100), IntegrityError, "is not a safetensors file"),
        (makers.safetensors(b"", bytes(100), 1000), IntegrityError, "is not a safetensors file"),
        (makers.safetensors(b"abcd"), IntegrityError, "damaged header"),
        (makers.safetensors(b"[]"), IntegrityError, "damaged header"),
        (makers.safetensors(b'{"a": 1}'), IntegrityError, "damaged header"),
        (makers.safetensors(b'{"a": {"data_offsets": [0, 4]}', bytes(4)), IntegrityError, "damaged header"),
        (
            makers.safetensors(b'{"a":{"dtype":4,"shape":[1],"data_offsets":[0,4]}}', bytes(4)),
            IntegrityError,
            "damaged header",
        ),
        (makers.safetensors(b'{"a":{"dtype":"F32","shape":"1","data_offsets":[0,4]}}', bytes(4)), IntegrityError, "damaged"),
        (makers.safetensors(b'{"__metadata__":{}}   '), OrchestrateError, "holds no tensors"),
    ],
)
def test_whole_weights(tmp_path: Path, content: bytes, kind: type[OrchestrateError] | None, message: str) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    if kind is None:
        models_safetensors.check_safetensors(path)
        assert models_safetensors.safetensors_header(path)["a"]["shape"] == [512]
        return
    with pytest.raises(kind, match=message) as caught:
        models_safetensors.check_safetensors(path)
    assert "w.safetensors" in caught.value.message


def test_code_in_a_config_needs_permission() -> None:
    models_remote_code.check_remote_code({"architectures": ["X"], "auto_map": {}}, "org/m")
    with pytest.raises(OrchestrateError, match="org/m wants to run Python code") as caught:
        models_remote_code.check_remote_code({"auto_map": {"AutoModel": "own.X"}}, "org/m")
    assert "trust_remote_code: true" in caught.value.hint


def refuse(*args: object) -> None:
    raise OSError(errno.EPERM, "not here")


@pytest.mark.parametrize("without", [(), ("symlink",), ("symlink", "link")])
def test_a_view_holds_its_files_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: tuple[str, ...]
) -> None:
    origin = folder_of(tmp_path / "origin", {**MODEL, "own.py": b"x", "1_Pooling/config.json": b"{}"})
    for name in without:
        monkeypatch.setattr(os, name, refuse)
    files = tuple(HubFile(path=name, size=0) for name in ("config.json", "1_Pooling/config.json"))
    models_view.make_view(files, origin, tmp_path / "view")
    view = {path.relative_to(tmp_path / "view").as_posix() for path in (tmp_path / "view").rglob("*") if path.is_file()}
    assert view == {"config.json", "1_Pooling/config.json"}
    if os.name != "nt":  # where links need a right of their own
        assert (tmp_path / "view" / "config.json").is_symlink() is (without == ())
    assert (tmp_path / "view" / "config.json").read_bytes() == b"{}"


def test_a_view_stays_in_its_folder_and_of_what_is_there(tmp_path: Path) -> None:
    origin = folder_of(tmp_path / "origin", MODEL)
    with pytest.raises(OrchestrateError, match="could leave its folder"):
        models_view.make_view([HubFile(path="../beside", size=0)], origin, tmp_path / "view")
    with pytest.raises(OrchestrateError, match="is gone"):
        models_view.make_view([HubFile(path="gone.json", size=0)], origin, tmp_path / "view")


def test_a_view_on_a_full_disk_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    origin = folder_of(tmp_path / "origin", MODEL)
    for place, name in ((os, "symlink"), (os, "link")):
        monkeypatch.setattr(place, name, refuse)
    (tmp_path / "view" / "config.json").mkdir(parents=True)
    with pytest.raises(OSError):
        models_view.make_view([HubFile(path="config.json", size=2)], origin, tmp_path / "view")


BUSY = ("GET /api/models/org/m/revision", "GET /api/models/org/m/tree", "HEAD /org/m/resolve", "GET /org/m/resolve", "GET /store")
FAR = ({"Retry_After": "86400"}, {"Retry_After": "Fri, 31 Dec 9999 23:59:59 GMT"}, {"RateLimit": '"api";r=0;t=86400'})


@pytest.mark.parametrize("begins", BUSY)
@pytest.mark.parametrize("headers", FAR, ids=["seconds", "date", "limit"])
def test_no_request_waits_as_long_as_a_hub_asks(server: Hub, cache: Path, begins: str, headers: dict[str, str]) -> None:
    server.busy, began = (begins, headers), time.monotonic()
    with pytest.raises(NetworkError, match=r"limits requests \(429\).*ORCHESTRATE_WAIT_SECONDS") as caught:
        hub.fetch(listed(server), settings(server.url), nothing)
    assert caught.value.status == 429 and time.monotonic() - began < 20
    server.busy = ("", {})
    hub.fetch(listed(server), settings(server.url), nothing)


@pytest.mark.parametrize("begins", BUSY)
def test_what_a_hub_asks_for_is_waited_once_and_told(
    server: Hub, cache: Path, begins: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, said = list[float](), list[str]()
    wait = cancel.wait
    monkeypatch.setattr(cancel, "wait", lambda seconds: waits.append(seconds) if seconds >= 1 else wait(seconds))
    server.busy = (begins, {"Retry_After": "20"})
    context = contextvars.copy_context()
    context.run(cancel.tell.set, said.append)
    with pytest.raises(NetworkError, match="try again in 20 s"):
        context.run(lambda: hub.fetch(listed(server), settings(server.url), nothing))
    assert waits and set(waits) == {20.0} and set(said) == {f"waiting 20 s, as {server.url} asks"}


def test_a_session_that_the_library_makes_anew_is_guarded_too(server: Hub, cache: Path) -> None:
    listed(server)
    first = huggingface_hub.get_session()
    huggingface_hub.close_session()  # as it does where it cannot connect
    again = huggingface_hub.get_session()
    assert again is not first and again.event_hooks == first.event_hooks and again.timeout == first.timeout
    assert again.follow_redirects


def test_a_listing_is_pinned_and_fetched(server: Hub, cache: Path) -> None:
    server.files |= {"own.py": b"x", "pytorch_model.bin": b"x" * 5000}
    found, seen = listed(server), list[str]()
    assert found.commit == COMMIT
    assert huggingface_hub.get_session().timeout.read == hub_session.LIMIT_SECONDS
    assert {file.path: file.sha256 or file.oid for file in found.files} == {
        name: hashlib.sha256(content).hexdigest() if len(content) > LARGE else blob(content) for name, content in MODEL.items()
    }
    total = sum(len(content) for content in MODEL.values())
    assert sum(file.size for file in hub.missing(found)) == total
    folder = hub.fetch(found, settings(server.url), seen.append)
    assert folder == cache / "models--org--m" / "snapshots" / COMMIT
    assert {name: (folder / name).read_bytes() for name in MODEL} == MODEL
    assert seen[-1] == f"{total / 1e6:.1f} of {total / 1e6:.1f} MB"
    assert hub.missing(found) == ()
    asked = server.seen.total()
    assert fetched(server, found) == MODEL
    assert server.seen.total() == asked
    assert server.tokens == []


@pytest.mark.parametrize(
    ("fault", "message", "hint"),
    [
        ("gated", "org/m is gated", "accept its licence at http"),
        ("missing", "not on the hub, or it is private", "check the spelling"),
        ("private", "not on the hub, or it is private", "no token is sent to a mirror"),
        ("revision", "has no revision main", "/org/m/tree/main"),
        ("401", "the hub refuses \\(401\\)|is not on the hub", ""),
        ("403", "the hub refuses \\(403\\)", "no token is sent to a mirror"),
        ("429", "limits requests", "wait"),
        ("503", "cannot be read from .*: it answered 503", "HF_ENDPOINT"),
        ("page", "did not answer as a hub does", "login page"),
        ("no-sha", "did not answer as a hub does", "HF_ENDPOINT"),
        ("odd-sha", "did not answer as a hub does when asked which commit", "HF_ENDPOINT"),
    ],
)
def test_every_refusal_has_its_own_words(server: Hub, fault: str, message: str, hint: str) -> None:
    server.fault = fault
    with pytest.raises(NetworkError, match=message) as caught:
        listed(server)
    assert hint in caught.value.hint
    assert server.tokens == []
    tries = server.seen["GET /api/models/org/m/revision/main"]
    assert tries == (3 if fault in ("429", "503") else 1)


@pytest.mark.parametrize("fault", ["once-429", "once-503"])
def test_a_passing_refusal_heals(server: Hub, fault: str) -> None:
    server.fault = fault
    assert listed(server).commit == COMMIT


@pytest.mark.parametrize(
    ("repo", "message", "hint"), [("m", "not on the hub", "write org/name"), ("a b/c", "cannot be the name", "org/name")]
)
def test_misspelt(server: Hub, repo: str, message: str, hint: str) -> None:
    server.fault = "missing"
    with pytest.raises(NetworkError, match=message) as caught:
        listed(server, repo)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("token", "message", "hint"),
    [("hf_x", "your token's account may not read it", "ask for access at"), ("", "is gated$", "hf auth login")],
)
def test_gated_on_the_hub_itself(cache: Path, monkeypatch: pytest.MonkeyPatch, token: str, message: str, hint: str) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    error = type("GatedRepoError", (Exception,), {})("no")
    explained = hub_session.refusal(error, 403, PLACE)
    assert re.search(message, explained.message)
    assert hint in explained.hint


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), OrchestrateError, "cannot be kept in the cache: .*No space left"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), NetworkError, "cannot be read from"),
        (type("OfflineModeIsEnabled", (ConnectionError,), {})(), NetworkError, "HF_HUB_OFFLINE is set"),
        (Exception(), NetworkError, "cannot be read from https://huggingface.co: Exception"),
    ],
)
def test_other_words(cache: Path, error: Exception, kind: type[OrchestrateError], message: str) -> None:
    explained = hub_session.refusal(error, 0, PLACE)
    assert type(explained) is kind
    assert re.search(message, explained.message)


def test_a_silent_hub_meets_the_time_limit(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.fault = "silent"
    monkeypatch.setattr(hub_session, "LIMIT_SECONDS", 0.2)
    started = time.monotonic()
    with pytest.raises(NetworkError, match="cannot be read from"):
        listed(server)
    assert time.monotonic() - started < 5


def test_an_unreachable_hub(cache: Path) -> None:
    with pytest.raises(NetworkError, match="cannot be read from http://127.0.0.1:9") as caught:
        hub.list_hub("org/m", "main", settings("http://127.0.0.1:9"), nothing, kind="model", weights=True, remote_code=False)
    assert "mirror (HF_ENDPOINT)" in caught.value.hint


def test_a_next_page_elsewhere_gets_no_token(server: Hub) -> None:
    server.fault = "next-elsewhere"
    with pytest.raises(NetworkError):
        listed(server)
    assert server.seen["GET /steal"] > 0
    assert server.tokens == []


def test_a_next_page_elsewhere_gets_no_token_from_a_trusted_endpoint_either(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    known = msgspec.structs.replace(settings(server.url), token_hosts=(server.url.removeprefix("http://"),))
    server.fault = "next-elsewhere"
    with pytest.raises(NetworkError):
        hub.list_hub("org/m", "main", known, nothing, kind="model", weights=True, remote_code=False)
    asked = server.seen["GET /api/models/org/m/revision/main"] + server.seen[f"GET /api/models/org/m/tree/{COMMIT}"]
    assert server.seen["GET /steal"] > 0 and server.tokens == ["Bearer hf_secret"] * asked


@pytest.mark.parametrize("fault", ["corrupt-once", "get-500"])
def test_a_download_that_heals(server: Hub, fault: str) -> None:
    server.fault = fault
    assert fetched(server, listed(server)) == MODEL


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        ("corrupt", IntegrityError, "expected [0-9a-f]{64}, got [0-9a-f]{64}"),
        ("short", NetworkError, "sent 4139 bytes of a file of org/m that has 4239"),
        ("pointer", IntegrityError, "Git LFS pointer, not weights"),
        ("etag-escape", NetworkError, "did not answer as a hub does about"),
        ("commit-escape", NetworkError, "did not answer as a hub does about"),
    ],
)
def test_a_bad_download_leaves_nothing_and_the_next_run_is_good(
    server: Hub, cache: Path, tmp_path: Path, fault: str, kind: type[OrchestrateError], message: str
) -> None:
    found, server.fault = listed(server), fault
    with pytest.raises(kind, match=message):
        fetched(server, found)
    assert not list(tmp_path.rglob("*beside*"))
    assert not (cache / "models--org--m" / "snapshots" / COMMIT / "model.safetensors").exists()
    server.fault = ""
    assert fetched(server, found) == MODEL
    assert not list(cache.rglob("*incomplete"))


def test_a_file_that_has_gone_is_told(server: Hub) -> None:
    found = listed(server)
    del server.files["tokenizer.json"]
    with pytest.raises(NetworkError, match=r"tokenizer.json of org/m is no longer at"):
        fetched(server, found)


@pytest.mark.parametrize("revision", [COMMIT, "main"])
def test_another_commit_than_was_asked_for_is_told_as_that(server: Hub, cache: Path, revision: str) -> None:
    found, server.fault = listed(server), "other-commit"
    with pytest.raises(NetworkError, match=f"answers with commit {OTHER} of org/m, when it is asked for {COMMIT}") as caught:
        if revision == COMMIT:
            hub.list_hub("org/m", COMMIT, settings(server.url), nothing, kind="model", weights=True, remote_code=False)
        fetched(server, found)
    assert "a mirror may lack that commit: unset HF_ENDPOINT" in caught.value.hint and "login" not in caught.value.hint
    assert not list(cache.rglob("*.json"))
    server.fault = ""
    assert fetched(server, found) == MODEL


@pytest.mark.parametrize("fault", ["404", "file-404"])
def test_a_commit_that_a_mirror_does_not_know_is_no_matter_of_the_network(server: Hub, fault: str) -> None:
    found, server.fault = listed(server), fault
    with pytest.raises(NetworkError, match=rf"has no (\S+ of )?org/m@{COMMIT} \(404\)") as caught:
        hub.list_hub("org/m", COMMIT, settings(server.url), nothing, kind="model", weights=True, remote_code=False)
        fetched(server, found)
    assert caught.value.status == 404 and "neither this repository nor this commit" in caught.value.hint


@pytest.mark.parametrize("harm", ["cut", "flip", "dangle"])
def test_damage_in_the_cache_is_repaired(server: Hub, cache: Path, harm: str) -> None:
    found = listed(server)
    path = (hub.fetch(found, settings(server.url), nothing) / "model.safetensors").resolve()
    if harm == "dangle":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:100] if harm == "cut" else b"x" * path.stat().st_size)
    assert fetched(server, found) == MODEL


def test_parts_that_a_kill_left_are_swept_away(server: Hub, cache: Path) -> None:
    found = listed(server)
    wanted = hashlib.sha256(MODEL["model.safetensors"]).hexdigest()
    blobs = cache / "models--org--m" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{wanted}.1a2b3c4d.incomplete").write_bytes(b"half")
    (blobs / "of-another-file.1a2b3c4d.incomplete").write_bytes(b"half")
    assert fetched(server, found) == MODEL
    assert [path.name for path in blobs.glob("*incomplete")] == ["of-another-file.1a2b3c4d.incomplete"]


def test_an_index_that_names_more_stops_before_the_weights(server: Hub) -> None:
    server.files[INDEX] = b'{"weight_map": {"a": "model.safetensors", "b": "gone.safetensors"}}'
    with pytest.raises(OrchestrateError, match="lacks 1 of 2 weight files: gone.safetensors"):
        listed(server)
    assert not any("model.safetensors" in path and "index" not in path for path in server.seen)


def test_the_index_on_the_hub_says_which_files_are_the_weights(server: Hub) -> None:
    weights = server.files.pop("model.safetensors")
    index = b'{"weight_map": {"a": "odd.safetensors"}}'
    server.files |= {"odd.safetensors": weights, "model_old.safetensors": weights, INDEX: index}
    found = listed(server)
    assert {file.path for file in found.files if "safetensors" in file.path} == {"odd.safetensors", INDEX}
    assert found.unread == ("model_old.safetensors",)


def test_a_hostile_lock_leads_nowhere(server: Hub) -> None:
    snapshot = Snapshot(source="org/m", commit=COMMIT, files=(HubFile(path="../beside", size=1),))
    with pytest.raises(OrchestrateError, match="could leave its folder"):
        fetched(server, snapshot)


def test_a_stop_ends_a_stalled_download_at_once(server: Hub) -> None:
    found, server.fault = listed(server), "stall"
    timer = threading.Timer(0.5, cancel.STOP.set)
    timer.start()
    started = time.monotonic()
    try:
        with pytest.raises(Stopped):
            fetched(server, found)
        assert time.monotonic() - started < 4
        # What still hangs must not hold the interpreter back.
        assert {thread for thread in threading.enumerate() if not thread.daemon} <= {threading.main_thread(), timer}
        with pytest.raises(Stopped):
            hub.digest_of(Path(__file__), HubFile(path="x", size=1, sha256="0"))
        with pytest.raises(Stopped):
            hub.TransferProgress(done={"x": 0}).count("x", 1)
        server.fault = "503"
        with pytest.raises(Stopped):
            listed(server)
    finally:
        timer.join()
        cancel.STOP.clear()
        server.over.set()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HF_HUB_CACHE": "/x/hub"}, "/x/hub"),
        ({"HUGGINGFACE_HUB_CACHE": "/y/hub"}, "/y/hub"),
        ({"HF_HOME": "/h"}, "/h/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({}, "~/.cache/huggingface/hub"),
    ],
)
def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert hub.cache_folder() == Path(expected).expanduser()


@pytest.mark.parametrize(
    ("endpoints", "variable", "bytes_", "way_out"),
    [
        (("https://mirror.example",), "", 50_000_000_001, "unset HF_ENDPOINT"),
        (("https://mirror.example",), "", 50_000_000_000, ""),
        (("https://mirror.example", "https://huggingface.co"), "", 60_000_000_000, ""),
        (("https://huggingface.co",), "", 60_000_000_000, ""),
        (("https://huggingface.co",), "1", 60_000_000_000, "unset HF_HUB_DISABLE_XET"),
    ],
)
def test_what_is_too_large_without_the_newer_store_is_told_from_its_listed_size(
    endpoints: tuple[str, ...], variable: str, bytes_: int, way_out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_XET", variable)
    here = Settings(cache=tmp_path, huggingface=endpoints, index=Index())
    files = [HubFile(path="model.safetensors", size=bytes_, sha256="0" * 64)]
    if not way_out:
        hub.check_sizes(files, "org/m", here)
        return
    with pytest.raises(NetworkError, match=r"model\.safetensors has [56]0\.0 GB") as caught:
        hub.check_sizes(files, "org/m", here)
    assert way_out in caught.value.hint


@pytest.mark.parametrize(
    ("text", "lack"),
    [('{"weight_map": {"a": "model-0', "it is cut, or no JSON"), ("", "it is cut, or no JSON"), ("{}", "it names no files")],
)
def test_an_index_that_is_none_says_what_it_lacks(text: str, lack: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(IntegrityError, match=f"{INDEX} is not an index of weight files: {lack}"):
        weight_files.indexed(tmp_path / INDEX)


def test_the_library_is_told_once_how_to_make_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    """To tell it closes the session that there is, which another thread may be using."""
    told: list[object] = []
    tell = huggingface_hub.set_client_factory

    def slowly(factory: Callable[[], Any]) -> None:
        told.append(factory)
        time.sleep(0.05)
        tell(factory)

    monkeypatch.setattr(hub_session, "_guarded", threading.Event())
    monkeypatch.setattr(huggingface_hub, "set_client_factory", slowly)
    sessions: list[object] = []

    def ask() -> None:
        hub_session.guard("http://hub.example")
        sessions.append(huggingface_hub.get_session())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 1 and len(sessions) == 8 and len(set(map(id, sessions))) == 1
    assert hub_session._strip in huggingface_hub.get_session().event_hooks["request"]
