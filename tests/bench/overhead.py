"""One large conversion: what checks and a receipt add to upstream's own time, and how much memory the driver itself holds."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.bench import world as worlds
from tests.bench.clock import Probe
from tests.bench.clock import ours
from tests.bench.clock import probed
from tests.bench.clock import settled
from tests.bench.clock import timed
from tests.bench.clock import turns
from tests.bench.table import Row
from tests.bench.table import compared
from tests.bench.table import limited
from tests.support import scratch
from tests.support.scratch import World

PAIRS = 3
MEGABYTE = 1_000_000
HIDDEN, LAYERS, HEADS, KV_HEADS, FFN, VOCABULARY = 2048, 20, 32, 4, 5632, 32_000
KV = HIDDEN // HEADS * KV_HEADS
# bfloat16 in its upper byte: sign and most of the exponent, here of numbers between 0.002 and 0.13.
UPPER = bytes((0x3B + byte % 3) | (byte & 0x80) for byte in range(256))


def rows(world: World) -> Iterator[Row]:
    """A model of 2 GB: the whole run, source already pinned, against the script; then the driver's own memory."""
    env, folder = world.env(), world.folder("overhead")
    model = folder / "llama"
    size = write_model(scratch.data(world.scratch) / "tiny-llama", model)
    job = worlds.write_job(folder, {"source": str(model), "outtype": "bf16"})
    ours("run", job, env=env)
    bare = worlds.by_hand(world, worlds.commands(job, env))
    probes: list[Probe] = []

    def fresh(place: str) -> None:
        # Over an older file of 2 GB the file system would first write the new one out, for whoever renames it.
        for path in (folder / place).glob("*.gguf*"):
            path.unlink()
        settled()

    def mine() -> float:
        fresh("dist")
        probes.append(probed(folder / "probe.json", "run", job, env=env))
        return probes[-1].seconds

    def other() -> float:
        fresh("by-hand")
        return bare()

    pairs = turns(PAIRS, mine, other)
    levels = json.loads(next((folder / "dist").glob("*.receipt.json")).read_bytes())["levels"]
    note = f"a Llama of {size / 1e9:.2f} GB in bfloat16; ours with receipt and the checks {', '.join(levels)}"
    yield compared("overhead: converting 2 GB in a run against the bare script", pairs, unit="s", goal=1.03, note=note)
    peaks = [probe.peak / MEGABYTE for probe in probes]
    note = "most memory resident in the driver's process, its children left out; theirs is the goal"
    yield limited("overhead: the driver's own memory while it converts 2 GB", peaks, 120, unit="MB", note=note)
    yield from verified(next((folder / "dist").glob("*.gguf")), env)
    shutil.rmtree(folder)


def verified(output: Path, env: dict[str, str]) -> Iterator[Row]:
    """Checking the file again, against what only sums it up."""
    if program := shutil.which("sha256sum"):
        argv = ("verify", "--level", "structure", output)
        pairs = turns(PAIRS, lambda: ours(*argv, env=env), lambda: timed([program, str(output)], env))
        note = "its numbers and its receipt, too; the file in the page cache"
        yield compared("overhead: `verify --level structure` of 2 GB against `sha256sum`", pairs, unit="s", goal=1.2, note=note)


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """The tensors of the model, by name."""
    inside = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (KV, HIDDEN),
        "self_attn.v_proj": (KV, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (FFN, HIDDEN),
        "mlp.up_proj": (FFN, HIDDEN),
        "mlp.down_proj": (HIDDEN, FFN),
        "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
    }
    outside: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCABULARY, HIDDEN),
    }
    repeated = {f"model.layers.{layer}.{name}.weight": shape for layer in range(layers) for name, shape in inside.items()}
    return outside | repeated


def write_model(small: Path, folder: Path, layers: int = LAYERS) -> int:
    """A random Llama with the tokenizer of the small one, the same bytes each time; their number."""
    shutil.copytree(small, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": layers, "head_dim": HIDDEN // HEADS}
    config |= {"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS}
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes(layers).items():
        length = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + length]}
        at += length
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    rng = random.Random(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes(layers).values():
            file.write(numbers(rng, shape))
    return at


def numbers(rng: random.Random, shape: tuple[int, ...]) -> bytes:
    """A tensor in bfloat16: random numbers, or ones for a norm."""
    if len(shape) == 1:
        return bytes((0x80, 0x3F)) * shape[0]
    count = shape[0] * shape[1]
    made = bytearray(2 * count)
    made[0::2] = rng.randbytes(count)
    made[1::2] = rng.randbytes(count).translate(UPPER)
    return bytes(made)
