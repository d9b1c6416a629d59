from __future__ import annotations

import ctypes
import os
import platform
import stat
import sys
from pathlib import Path

import pytest

from llamacpp_orchestrator.system import host

BANNER = "| NVIDIA-SMI 550.54    Driver Version: 550.54    CUDA Version: 12.4     |\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (BANNER, "12.4"),
        ("| NVIDIA-SMI 580.159.04             Driver Version: 580.159.04     CUDA Version: 13.0     |\n", "13.0"),
        ("| NVIDIA-SMI 610.10  KMD Version: 610.10  CUDA UMD Version: 13.4 |", "13.4"),
        ("| CUDA Version: N/A |", None),
        ("No devices were found", None),
        ("", None),
    ],
)
def test_parse_nvidia_smi(text: str, expected: str | None) -> None:
    assert host.parse_nvidia_smi(text) == expected


def test_parse_gpus() -> None:
    found = host.parse_gpus("8.9, NVIDIA GeForce RTX 4090\n[N/A], Odd, one\nNo devices were found\n")
    assert [(gpu.capability, gpu.name) for gpu in found] == [("8.9", "NVIDIA GeForce RTX 4090"), (None, "Odd, one")]


def fake_smi(folder: Path, banner: str, query: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nif [ $# = 0 ]; then echo '{banner}'; else {query}; fi\n")
    program.chmod(program.stat().st_mode | stat.S_IEXEC)


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with our own nvidia-smi at most, and no CUDA library."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setattr(host, "NVIDIA_SMI", ())
    monkeypatch.setattr(host, "CUDA_LIBRARY", {})
    return tmp_path


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for nvidia-smi is a shell script")
@pytest.mark.parametrize(
    ("query", "cuda", "capabilities"),
    [
        ("echo '8.9, RTX 4090'; echo '12.0, RTX 5090'; echo '8.9, RTX 4090'", "12.4", ("8.9", "12.0")),
        ("echo '[N/A], Odd'", "12.4", ()),
        ("echo 'No devices were found'; exit 6", None, ()),
    ],
)
def test_gpu_by_nvidia_smi(bare: Path, query: str, cuda: str | None, capabilities: tuple[str, ...]) -> None:
    fake_smi(bare, BANNER.strip(), query)
    found = host.detect()
    assert (found.cuda, found.capabilities) == (cuda, capabilities)


@pytest.mark.skipif(sys.platform == "win32", reason="looks for programs below /usr/bin")
def test_no_driver_is_normal(bare: Path) -> None:
    found = host.detect()
    assert (found.cuda, found.capabilities) == (None, ())
    assert found.cores >= 1
    assert found.memory > 100_000_000
    assert found.system == host.system()


class Library:
    """The five driver calls that we make, for two GPUs."""

    def __init__(self, fails: bool) -> None:
        self.fails = fails

    def cuInit(self, flags: int) -> int:
        return 100 if self.fails else 0

    def cuDriverGetVersion(self, into: object) -> int:
        return self.put(into, 12080)

    def cuDeviceGetCount(self, into: object) -> int:
        return self.put(into, 2)

    def cuDeviceGet(self, into: object, index: int) -> int:
        return self.put(into, index)

    def cuDeviceGetAttribute(self, into: object, attribute: int, device: ctypes.c_int) -> int:
        return self.put(into, {75: 8, 76: 6 + 3 * device.value}[attribute])

    def put(self, into: object, value: int) -> int:
        into._obj.value = value  # type: ignore[attr-defined]
        return 0


@pytest.mark.parametrize(("fails", "cuda", "capabilities"), [(False, "12.8", ["8.6", "8.9"]), (True, None, [])])
def test_gpu_by_driver_library(monkeypatch: pytest.MonkeyPatch, fails: bool, cuda: str | None, capabilities: list[str]) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library(fails))
    version, gpus = host._libcuda("libcuda.so.1")
    assert (version, [gpu.capability for gpu in gpus]) == (cuda, capabilities)


def test_broken_driver_library(tmp_path: Path) -> None:
    broken = tmp_path / "libcuda.so.1"
    broken.write_text("not a library")
    assert host._libcuda(str(broken)) == (None, ())


@pytest.mark.parametrize(
    ("machine", "name", "expected"),
    [("AMD64", "Windows", ("windows", "x64")), ("arm64", "Darwin", ("macos", "arm64")), ("s390x", "Linux", ("linux", "other"))],
)
def test_system_and_arch(monkeypatch: pytest.MonkeyPatch, bare: Path, machine: str, name: str, expected: tuple[str, str]) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "system", lambda: name)
    found = host.detect()
    assert (found.system, found.arch) == expected


def test_libc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert host._libc("macos") == ""
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    assert host._libc("linux") == "glibc 2.36"
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert host._libc("linux", tmp_path) == ""
    (tmp_path / "ld-musl-x86_64.so.1").touch()
    assert host._libc("linux", tmp_path) == "musl"


@pytest.mark.skipif(sys.platform != "linux", reason="control groups")
@pytest.mark.parametrize(("limit", "limited"), [("1000000\n", True), ("max\n", False)])
def test_memory_of_a_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str, limited: bool) -> None:
    (tmp_path / "memory.max").write_text(limit)
    monkeypatch.setattr(host, "CGROUP_LIMIT", tmp_path / "memory.max")
    assert (host.resources()[1] == 1_000_000) == limited


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for sysctl is a shell script")
def test_memory_of_a_mac(bare: Path) -> None:
    program = bare / "sysctl"
    program.write_text("#!/bin/sh\necho 17179869184\n")
    program.chmod(0o755)
    assert host._memory("macos") == 17179869184


@pytest.mark.parametrize(
    ("text", "expected"),
    [("MemTotal:  9 kB\nMemAvailable:    1024 kB\n", 1 << 20), ("MemTotal: 9 kB\nMemFree: 3 kB\n", 0), ("", 0)],
)
def test_parse_available(text: str, expected: int) -> None:
    assert host.parse_available(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0::/user.slice/job\n", ["user.slice/job", "user.slice", ""]),
        ("0::/\n", [""]),
        ("9:name=systemd:/a\n4:cpu,memory:/b/c\n2:cpuset:/d\n", ["memory/b/c", "memory/b", "memory"]),
        ("0::/../..\n", [""]),
        ("", []),
    ],
)
def test_groups_whose_limits_hold(text: str, expected: list[str], tmp_path: Path) -> None:
    assert [group.relative_to(tmp_path).as_posix().removeprefix(".") for group in host.groups(text, tmp_path)] == expected


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({"memory.max": "1000", "memory.current": "700", "memory.stat": "anon 1\ninactive_file 200\nactive_file 50\n"}, 550),
        ({"memory.max": "1000", "memory.current": "1200"}, 1),
        ({"memory.max": "max", "memory.current": "700"}, 5 << 20),
        (
            {
                "memory.limit_in_bytes": "1000",
                "memory.usage_in_bytes": "900",
                "memory.stat": "inactive_file 1\ntotal_active_file 300",
            },
            400,
        ),
        ({}, 5 << 20),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="control groups")
def test_what_is_free_for_us(files: dict[str, str], left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = "memory.limit_in_bytes" in files
    inner = tmp_path / "memory" / "a" / "b" if old else tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    for name, content in files.items():
        (inner.parent / name).write_text(content)
    (tmp_path / "meminfo").write_text(f"MemAvailable: {5 << 10} kB\n")
    (tmp_path / "cgroup").write_text("4:memory:/a/b\n" if old else "0::/a/b\n")
    monkeypatch.setattr(host, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(host, "OWN_GROUP", tmp_path / "cgroup")
    monkeypatch.setattr(host, "CGROUP_LIMIT", tmp_path / "memory.max")
    assert host.available() == left


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_where_the_kernel_does_not_say_what_is_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < host.available() <= host.resources()[1]
    monkeypatch.setattr(host, "MEMINFO", tmp_path / "none")
    monkeypatch.setattr(host, "OWN_GROUP", tmp_path / "none")
    assert host.available() == host.resources()[1]


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for sysctl is a shell script")
def test_other_systems_count_all_that_they_have(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = bare / "sysctl"
    program.write_text("#!/bin/sh\necho 17179869184\n")
    program.chmod(0o755)
    monkeypatch.setattr(host, "system", lambda: "macos")
    assert host.available() == 17179869184
