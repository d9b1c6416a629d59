from __future__ import annotations

import platform
from pathlib import Path
from types import SimpleNamespace

import psutil
import pynvml
import pytest

from llamacpp_orchestrator.system import host

MB = 1 << 20


class Driver:
    """What NVIDIA's library answers; a GPU of no capability gives an error."""

    def __init__(self, version: int, gpus: tuple[tuple[int, int] | None, ...]) -> None:
        self.version, self.gpus = version, gpus

    def nvmlInit(self) -> None:
        if not self.version:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return self.version

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:
        return number

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:
        if capability := self.gpus[handle]:
            return capability
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)


@pytest.mark.parametrize(
    ("version", "gpus", "cuda", "capabilities"),
    [
        (12040, ((12, 0), (8, 9), (12, 0)), "12.4", ("8.9", "12.0")),
        (13000, ((8, 6), (10, 3)), "13.0", ("8.6", "10.3")),
        (12080, (None,), "12.8", ()),
        (12080, (None, (7, 5)), "12.8", ("7.5",)),
        (12080, (), None, ()),
        (0, (), None, ()),
    ],
)
def test_gpus(
    monkeypatch: pytest.MonkeyPatch,
    version: int,
    gpus: tuple[tuple[int, int] | None, ...],
    cuda: str | None,
    capabilities: tuple[str, ...],
) -> None:
    driver = Driver(version, gpus)
    for name in filter(lambda name: name.startswith("nvml"), dir(driver)):
        monkeypatch.setattr(pynvml, name, getattr(driver, name))
    here = host.detect()
    assert (here.cuda, here.capabilities) == (cuda, capabilities)


def test_no_driver_is_normal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "CDLL", absent)
    here = host.detect()
    assert (here.cuda, here.capabilities) == (None, ())
    assert here.cores >= 1
    assert here.memory > 100_000_000
    assert here.system == host.system()


def absent(name: str) -> None:
    raise OSError(name)


@pytest.mark.parametrize(
    ("machine", "name", "expected"),
    [("AMD64", "Windows", ("windows", "x64")), ("arm64", "Darwin", ("macos", "arm64")), ("s390x", "Linux", ("linux", "other"))],
)
def test_system_and_arch(monkeypatch: pytest.MonkeyPatch, machine: str, name: str, expected: tuple[str, str]) -> None:
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


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of eight megabytes, of which five are free."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=8 * MB, available=5 * MB))


@pytest.mark.parametrize(("limit", "total"), [("1000000\n", 1_000_000), ("max\n", 8 * MB), (f"{9 * MB}\n", 8 * MB), ("", 8 * MB)])
def test_memory_of_a_container(memory: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str, total: int) -> None:
    (tmp_path / "memory.max").write_text(limit)
    monkeypatch.setattr(host, "CGROUP_LIMIT", tmp_path / "memory.max")
    assert host.resources()[1] == total


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
        ({"memory.max": "max", "memory.current": "700"}, 5 * MB),
        (
            {
                "memory.limit_in_bytes": "1000",
                "memory.usage_in_bytes": "900",
                "memory.stat": "inactive_file 1\ntotal_active_file 300",
            },
            400,
        ),
        ({"memory.max": str(7 * MB), "memory.current": "700"}, 5 * MB),
        ({}, 5 * MB),
    ],
)
def test_what_is_free_for_us(
    memory: None, files: dict[str, str], left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = "memory.limit_in_bytes" in files
    inner = tmp_path / "memory" / "a" / "b" if old else tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    for name, content in files.items():
        (inner.parent / name).write_text(content)
    (tmp_path / "cgroup").write_text("4:memory:/a/b\n" if old else "0::/a/b\n")
    monkeypatch.setattr(host, "OWN_GROUP", tmp_path / "cgroup")
    monkeypatch.setattr(host, "CGROUP_LIMIT", tmp_path / "memory.max")
    assert host.available() == left


def test_this_machine_has_memory_and_one_that_tells_nobody_has_an_unknown_amount(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < host.available() <= host.resources()[1]
    monkeypatch.setattr(psutil, "virtual_memory", lambda: absent("/proc/meminfo"))
    assert host.available() == host.resources()[1] == 0
