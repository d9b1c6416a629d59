"""Facts of repositories of every kind, for the tests of model cards."""

from __future__ import annotations

from typing import Any

import msgspec

from llamacpp_orchestrator.card.facts import CardCommand
from llamacpp_orchestrator.card.facts import CardFile
from llamacpp_orchestrator.card.facts import Facts
from llamacpp_orchestrator.card.facts import Origin

COMMIT = "5a8abab4a5d6f164389b1079fb721cfab8d7126c"
CHAT = {"license": "llama3.2", "language": ["en", "no"], "pipeline_tag": "text-generation"}
BASE = Origin(source="meta/Llama-3.2-1B", role="base", commit=COMMIT, front=CHAT)
FOLDER = Origin(source="my-model", role="base", front={"base_model": "meta/Llama-3.2-1B", "license": "MIT"})
ADAPTER = Origin(source="me/bot-lora", role="adapter", commit="1" * 40, front={"license": "apache-2.0"})
# Type, size, bits per weight, perplexity, divergence, same top token.
MEASURED = (
    ("bf16", 2_479_595_360, 16.0, 13.1586, None, None),
    ("Q8_0", 1_321_082_688, 8.5, 13.1651, 0.000512, 98.41),
    ("Q6_K", 1_021_800_256, 6.57, 13.1802, 0.002103, 96.9),
    ("Q4_K_M", 807_694_144, 5.18, 13.5511, 0.021904, 91.2),
    ("Q4_0", 770_928_448, 4.94, 14.0613, 0.049441, 87.4),
    ("IQ4_XS", 743_142_208, 4.77, 13.6412, 0.026773, 90.1),
)


def file(path: str, kind: str = "quantized", type_: str = "Q4_K_M", **more: Any) -> CardFile:
    """A file of a repository, of 1 GB unless said otherwise."""
    fields: dict[str, Any] = {"size": 10**9, "sha256": f"{len(path):064x}", "levels": ("structure", "content", "load")}
    return CardFile(path=path, kind=kind, type=type_, **fields | more)


def measured_files() -> tuple[CardFile, ...]:
    """A model's files with all that can be measured of them."""
    return tuple(
        file(f"m-{type_}.gguf", "quantized" if kld else "model", type_, size=size, bits=bits, ppl=ppl, kld=kld, same_top=same)
        for type_, size, bits, ppl, kld, same in MEASURED
    )


def facts(*files: CardFile, **more: Any) -> Facts:
    """The facts of a repository: of a quantized chat model without measurements unless said otherwise."""
    files = files or (file("m-bf16.gguf", "model", "bf16"), file("m-Q4_K_M.gguf"))
    fields: dict[str, Any] = {
        "repo": "me/m-GGUF",
        "title": "m",
        "relation": "quantized",
        "origins": (BASE,),
        "commands": tuple(CardCommand(path=each.path, command=("{llama-quantize}", each.path, each.type)) for each in files),
        "tag": "b11434",
        "commit": "2" * 40,
        "tree": "3" * 64,
        "environment": "4" * 64,
        "tool": "0.1.0",
        "job": "job.yaml",
        "lock": "job.lock.yaml",
        "chat": True,
    }
    return Facts(files=files, **fields | more)


def _front(**front: Any) -> Origin:
    return msgspec.structs.replace(BASE, front=front)


SHARDS = tuple(file(f"m-Q4_K_M-0000{number}-of-00003.gguf", size=5 * 10**9) for number in (1, 2, 3))
LORA = file("m-bot-lora-f16.gguf", "adapter", "f16", size=22_573_152)
MERGED = (
    BASE,
    Origin(source="me/one", role="merged", commit="5" * 40, weight=0.5, front={"license": "apache-2.0"}),
    Origin(source="two", role="merged", front={"base_model": "./base"}),
)
VISION = (file("m-Q4_K_M.gguf"), file("mmproj-m-f16.gguf", "mmproj", "f16"))
LICENSED = {"license": "other", "license_name": "my-license", "license_link": "LICENSE", "language": "en"}

KINDS: dict[str, Facts] = {
    "quantized, measured": facts(*measured_files(), plot="m-quality.svg", measured_on="wiki.test.raw", matrix="m.imatrix"),
    "unmeasured": facts(),
    "split": facts(*SHARDS),
    "adapter": facts(LORA, relation="adapter", origins=(BASE, ADAPTER), chat=False),
    "merge": facts(relation="merge", origins=MERGED),
    "merged alone": facts(
        *(file(f"m/{name}", "merged", "safetensors") for name in ("config.json", "model.safetensors")),
        relation="merge",
        origins=MERGED,
        chat=False,
    ),
    "projector alone": facts(file("mmproj-m-f16.gguf", "mmproj", "f16"), chat=False),
    "vision": facts(*VISION, origins=(_front(pipeline_tag="image-text-to-text"),)),
    "encoder": facts(origins=(_front(pipeline_tag="sentence-similarity", language="en"),), chat=False, embedding=True),
    "folder": facts(origins=(FOLDER,)),
    "gated": facts(origins=(_front(**LICENSED),)),
    "languages": facts(origins=(_front(language=["en", "no", "zh-CN", "eng_Latn", "English"]),)),
    "together": facts(file("m-Q4_K_M.gguf"), LORA, origins=(BASE, ADAPTER)),
}
