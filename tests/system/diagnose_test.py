"""Ends of programs that the machine caused are told by signal, exit code and the system's errors, before any words of theirs."""

from __future__ import annotations

import errno

import pytest

from llamacpp_orchestrator.binaries import cmake_build
from llamacpp_orchestrator.convert import imatrix
from llamacpp_orchestrator.convert import quantize
from llamacpp_orchestrator.convert import warm_worker
from llamacpp_orchestrator.environment import indexes
from llamacpp_orchestrator.errors import CommandFailed
from llamacpp_orchestrator.system import diagnose
from llamacpp_orchestrator.verify import perplexity

FULL = "the disk is full"
MEMORY, NOEXEC, OWN, SYSTEM = "ran out of memory", "noexec", "package is incomplete", "the system's library"
UV = "error: Failed to install: torch-2.13.0.whl\n  Caused by: failed to copy file: "
# What a program says → words of the cause.
SAID = {
    "OSError: [Errno 28] No space left on device": FULL,
    "OSError: [Errno 28] Aucun espace disponible sur le périphérique": FULL,
    "OSError: 2048000 requested and 639904 written": FULL,
    f"{UV}No space left on device (os error 28)": FULL,
    f"{UV}There is not enough space on the disk. (os error 112)": FULL,
    f"{UV}Read-only file system (os error 30)": "cannot be written to",
    f"OSError: [Errno {errno.EDQUOT}] Disk quota exceeded" if hasattr(errno, "EDQUOT") else "cp: Disk quota exceeded": "quota",
    "OSError: [Errno 27] File too large: '/m/out.gguf'": "no file so large",
    "OSError: [Errno 24] Too many open files": "too many files",
    "OSError: [Errno 5] Input/output error": "a disk does not read",
    "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes": MEMORY,
    "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 9.3 GiB for an array": MEMORY,
    "ImportError: libtorch_cpu.so: failed to map segment from shared object: Cannot allocate memory": MEMORY,
    "ImportError: libtorch_cpu.so: failed to map segment from shared object": NOEXEC,
    "ImportError: /c/libtorch.so: failed to map segment from shared object: Operation not permitted": NOEXEC,
    "`/c/bin/llama-quantize` could not be started: Permission denied": NOEXEC,
    "llama-quantize: error while loading shared libraries: libllama.so.0: cannot open shared object file: No such file": OWN,
    "llama-quantize: error while loading shared libraries: libggml-base.so: cannot open shared object file: No such file": OWN,
    "dyld[1]: Library not loaded: @rpath/libmtmd.0.dylib": OWN,
    "x: error while loading shared libraries: libgomp.so.1: cannot open shared object file: No such file": SYSTEM,
    "ImportError: libstdc++.so.6: cannot open shared object file: No such file or directory": SYSTEM,
    "dyld[1]: Library not loaded: /opt/homebrew/opt/libomp/lib/libomp.dylib": SYSTEM,
    "ValueError: Can not map tensor 'x'": "",
}


@pytest.mark.parametrize("said", SAID)
def test_errors_of_the_system_are_told_as_such(said: str) -> None:
    cause, remedy = diagnose.machine(1, f"INFO:hf-to-gguf:Loading model\n{said}")
    assert SAID[said] in cause and bool(cause) is bool(SAID[said]) is bool(remedy)


@pytest.mark.parametrize(("code", "words"), [(-9, "memory"), (137, "memory"), (-4, "instructions"), (-25, "ulimit -f")])
def test_a_signal_comes_before_words(code: int, words: str) -> None:
    cause, remedy = diagnose.machine(code, "No space left on device")
    assert not cause and words in remedy


def test_what_we_have_ended_ourselves_is_no_want_of_memory() -> None:
    assert diagnose.machine(-9, "`llama-imatrix` took longer than 5 min") == ("", "")
    error = CommandFailed("`llama-perplexity` took longer than 5 min", code=-9)
    assert "minutes" in perplexity.explain(error)[1] and "minutes" in imatrix.explain(error)[1]


# Each table of words would know another cause for these lines: those of an adapter, of options, of an index or a compiler.
OTHER = "Embeddings is present in the adapter\nusage: x\ninvalid ftype\nnvcc\nNo solution found\ntimed out\n"


@pytest.mark.parametrize("said", [said for said in SAID if SAID[said]])
def test_whoever_explains_asks_for_the_machine_first(said: str) -> None:
    error = CommandFailed("`x` ended with exit code 1", code=1, tail=OTHER + said)
    ends = [warm_worker.failed(error).message, quantize.explain(error.tail)[0], imatrix.explain(error)[0]]
    ends += [perplexity.explain(error)[0], cmake_build.explain(error.tail)[0], indexes.failed(error, "what", "overrides").message]
    assert all(SAID[said] in words for words in ends)
    assert "overrides" not in indexes.failed(error, "what", "overrides").hint
