"""A lock, with one of each of its parts."""

from __future__ import annotations

from pathlib import Path

from llamacpp_orchestrator.binaries.release import Asset
from llamacpp_orchestrator.job import loader
from llamacpp_orchestrator.lock import records
from llamacpp_orchestrator.lock.records import EnvironmentPin
from llamacpp_orchestrator.lock.records import FilesPin
from llamacpp_orchestrator.lock.records import Lock
from llamacpp_orchestrator.models.hub import HubFile
from llamacpp_orchestrator.source.pin import SourcePin
from tests.support import TAG

REPO = "https://github.com/ggml-org/llama.cpp"
REQUIREMENTS = (
    f"numpy==1.26.4 \\\n    --hash=sha256:{'1' * 64}\ntorch==2.13.0 ; sys_platform == 'linux' \\\n    --hash=sha256:{'2' * 64}\n"
)
TEXT = b"""
version: 1
llama_cpp: {tag: b11434}
models:
  - source: org/m
    quantize: [Q4_0]
    loras: [org/l]
"""
JOB = loader.parse(TEXT, Path("job.yaml"))


def a_lock() -> Lock:
    """The lock of that job."""
    base, adapter = records.all_wanted(JOB)
    return Lock(
        llama_cpp=SourcePin(tag=TAG, repo=REPO, tree="3" * 64, commit="c" * 40),
        environment=EnvironmentPin(upstream="4" * 64, torch="cpu", python="3.11", requirements=REQUIREMENTS),
        assets=(Asset(name="llama-b11434-bin-ubuntu-x64.tar.gz", url="https://h/a.tar.gz", size=5, sha256="5" * 64),),
        models=(
            FilesPin(wanted=base, commit="a" * 40, files=(HubFile(path="config.json", size=2, oid="b" * 40),)),
            FilesPin(wanted=adapter, commit="d" * 40, files=(HubFile(path="adapter_config.json", size=2, sha256="6" * 64),)),
        ),
    )
