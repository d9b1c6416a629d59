"""The job file, and what else a user types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from llamacpp_orchestrator.job import layout
from llamacpp_orchestrator.job import loader
from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.util import units
from tests.fuzz.common import JOB_LETTERS
from tests.fuzz.common import JOB_LINES
from tests.fuzz.common import fuzzed
from tests.fuzz.common import reading
from tests.fuzz.common import words
from tests.fuzz.common import yaml_text

JOB: dict[str, Any] = {
    "version": 1,
    "llama_cpp": {"tag": "b11434", "repo": "https://github.com/ggml-org/llama.cpp"},
    "binaries": {"backend": "auto", "cuda": "12.4"},
    "environment": {"python": "3.11", "torch": "cpu", "overrides": ["torch==2.13.0"], "path": None},
    "output": "dist",
    "models": [
        "org/other@v1",
        {
            "source": "org/name",
            "revision": "main",
            "name": "mine",
            "outtype": ["bf16", "q8_0"],
            "outfile": "{name}-{type}.gguf",
            "quantize": ["Q4_K_M"],
            "imatrix": {"text": "a.txt", "chunks": 10, "minutes": 5},
            "quality": {"text": "b.txt"},
            "mmproj": "f16",
            "args": ["--split-max-size", "4G"],
            "trust_remote_code": False,
            "ollama": True,
            "verify": "content",
            "loras": ["./a", {"source": "./b", "outtype": "f32", "args": []}],
        },
    ],
}
FILE = Path("/nowhere/job.yaml")


@fuzzed(yaml_text(JOB))
def test_the_job_file(text: bytes) -> None:
    job = reading(lambda: loader.parse(text, FILE), JOB_LINES, JOB_LETTERS)
    for output in layout.outputs(job, FILE.parent) if job else ():
        assert output.path.is_relative_to(spec.folder(job.output, FILE.parent)) and len(output.path.name.encode()) <= 255


@fuzzed(words | st.from_regex(r"\s?\d{1,12}(\.\d{1,12})? ?[KMGTkmgtB]i?B?", fullmatch=True))
def test_sizes(text: str) -> None:
    found = reading(lambda: units.parse(text, "--memory"))
    assert found is None or found > 0


@fuzzed(st.integers(1000, 10**15))
def test_sizes_read_back(count: int) -> None:
    assert abs(units.parse(units.size(count), "") - count) <= count / 19
