"""What goes over the network: llama.cpp's tree, an adapter without its base, a model with every format beside it."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from collections.abc import Mapping
from pathlib import Path

from tests.bench import upstream as upstreams
from tests.bench import world as worlds
from tests.bench.clock import orchestrate
from tests.bench.relay import Counted
from tests.bench.relay import relay
from tests.bench.table import Row
from tests.bench.table import compared
from tests.bench.table import limited
from tests.support import TAG
from tests.support import scratch
from tests.support.scratch import Failed
from tests.support.scratch import World
from tests.support.scratch import run
from tests.support.stage.hub import Hub

MEGABYTE = 1_000_000
MODEL, ADAPTER = "org/m", "org/adapter"
TOKENIZER = ("config.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
# The same weights once more, as repositories carry them for other programs.
OTHERS = (
    "pytorch_model.bin",
    "consolidated.safetensors",
    "original/consolidated.00.pth",
    "model-Q8_0.gguf",
    "onnx/model.onnx",
    "onnx/model_quantized.onnx",
    "tf_model.h5",
    "flax_model.msgpack",
    "openvino/openvino_model.bin",
)


def rows(world: World) -> Iterator[Row]:
    """Bytes that servers here have sent, headers included."""
    yield from tree(world)
    data = scratch.data(world.scratch)
    base, adapter = (contents(data / name) for name in ("tiny-llama", "lora-a"))
    heavy = base | dict.fromkeys(OTHERS, base["model.safetensors"])
    needed = size(adapter) + size({name: base[name] for name in TOKENIZER})
    lora = {"source": MODEL, "outtype": "none", "loras": [{"source": ADAPTER, "outtype": "f16"}]}
    yield compared(
        "bytes: an adapter alone against adapter, config and tokenizer",
        [(fetched(world, "lora", lora, heavy, adapter), needed)],
        unit="B",
        goal=1.5,
        note="`outtype: none`; its base lies on the hub with all of its weights",
    )
    needed = size({name: base[name] for name in (*TOKENIZER, "model.safetensors")})
    whole = {"source": MODEL, "outtype": "f16"}
    yield compared(
        "bytes: a model with nine other formats against what conversion reads",
        [(fetched(world, "whole", whole, heavy, adapter), needed)],
        unit="B",
        goal=1.1,
    )


def tree(world: World) -> Iterator[Row]:
    """The tree by the driver's git route, as megabytes and against a shallow clone."""
    with upstreams.upstream(world.scratch) as upstream:
        folder = world.folder("tree")
        env = world.env(ORCHESTRATE_GITHUB_URL=upstream.url, ORCHESTRATE_LLAMA_CPP_FROM="git", GIT_TERMINAL_PROMPT="0")
        job = worlds.write_job(folder, {"source": str(scratch.data(world.scratch) / "tiny-llama")})
        orchestrate("setup", job, env=env)
        mine = upstream.counted.received
        address = f"{upstream.url}/{upstreams.PLACE}"
        run(["git", "clone", "--quiet", "--depth", "1", "--branch", TAG, address, str(folder / "clone")], env)
        theirs = upstream.counted.received - mine
    note = f"the tree of {TAG} as its package carries it, which is nearly all of upstream's"
    megabytes = (mine / MEGABYTE, theirs / MEGABYTE)
    yield compared("bytes: llama.cpp's tree against `git clone --depth 1`", [megabytes], unit="MB", goal=0.06, note=note)
    yield limited("bytes: llama.cpp's tree", [megabytes[0]], 2.0, unit="MB", note="theirs is the goal")


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def size(files: Mapping[str, bytes]) -> int:
    """All of their bytes."""
    return sum(map(len, files.values()))


def fetched(world: World, name: str, model: Mapping[str, object], base: dict[str, bytes], adapter: dict[str, bytes]) -> int:
    """Bytes that the hub sends until a job over it is done; the home for models is empty at first."""
    with hub(base, adapter) as (url, counted):
        folder = world.folder(f"hub-{name}")
        env = world.env(HF_ENDPOINT=url, HF_HOME=str(folder / "hf"))
        said = json.loads(orchestrate("run", worlds.write_job(folder, model), "--json", env=env))
        if len(said["outputs"]) != 1:
            raise Failed(f"one output was to be made: {said['outputs']}")
        return counted.received


@contextlib.contextmanager
def hub(base: dict[str, bytes], adapter: dict[str, bytes]) -> Iterator[tuple[str, Counted]]:
    """The hub with a model and an adapter, and what it has sent; its file store is reached over the same road."""
    with Hub() as server, relay(server.server_address[1]) as counted:
        server.files, server.others = base, {ADAPTER: adapter}
        server.url, server.store = f"http://127.0.0.1:{counted.port}", f"http://localhost:{counted.port}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server.url, counted
        server.shutdown()
