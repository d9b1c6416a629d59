"""Which packages and which of their wheels a platform needs, as tables."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from llamacpp_orchestrator.environment import wheels
from llamacpp_orchestrator.environment.pin import Pin
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.system.settings import Index
from llamacpp_orchestrator.util.hashing import file_sha256

A, B = "a" * 64, "b" * 64
SET = f"""\
colorama==0.4.6 ; sys_platform == 'win32' \\
    --hash=sha256:{A}
Jinja2==3.1.6 \\
    --hash=sha256:{A} \\
    --hash=sha256:{B}
networkx==3.6.1 ; python_full_version < '3.12' \\
    --hash=sha256:{A}
networkx==3.7 ; python_full_version >= '3.12' \\
    --hash=sha256:{A}
torch==2.13.0 ; sys_platform == 'darwin' or sys_platform == 'win32' \\
    --hash=sha256:{A}
torch==2.13.0+cpu ; platform_machine == 'x86_64' and sys_platform == 'linux' \\
    --hash=sha256:{B}
"""


@pytest.mark.parametrize(
    ("platform", "python", "needed"),
    [
        ("linux-x64", "3.11", ["jinja2 3.1.6", "networkx 3.6.1", "torch 2.13.0+cpu"]),
        ("linux-x64", "3.12", ["jinja2 3.1.6", "networkx 3.7", "torch 2.13.0+cpu"]),
        ("linux-arm64", "3.11", ["jinja2 3.1.6", "networkx 3.6.1"]),
        ("windows-x64", "3.11", ["colorama 0.4.6", "jinja2 3.1.6", "networkx 3.6.1", "torch 2.13.0"]),
        ("macos-arm64", "3.12", ["jinja2 3.1.6", "networkx 3.7", "torch 2.13.0"]),
    ],
)
def test_what_a_platform_needs(platform: str, python: str, needed: list[str]) -> None:
    found = wheels.packages(SET, platform, python)
    assert [f"{package.name} {package.version}" for package in found] == needed
    assert next(package for package in found if package.name == "jinja2").hashes == {A, B}


@pytest.mark.parametrize(
    ("name", "platform", "python", "fits"),
    [
        ("torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl", "linux-x64", "3.11", True),
        ("torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl", "linux-x64", "3.12", False),
        ("torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl", "linux-arm64", "3.11", False),
        ("torch-2.13.0-cp311-none-macosx_11_0_arm64.whl", "macos-arm64", "3.11", True),
        ("torch-2.13.0-cp311-none-macosx_11_0_arm64.whl", "macos-x64", "3.11", False),
        ("numpy-2.2.6-cp311-cp311-macosx_10_9_universal2.whl", "macos-x64", "3.11", True),
        ("numpy-2.2.6-cp311-cp311-manylinux_2_17_aarch64.manylinux2014_aarch64.whl", "linux-arm64", "3.11", True),
        ("numpy-2.2.6-cp311-cp311-musllinux_1_2_x86_64.whl", "linux-x64", "3.11", False),
        ("numpy-2.2.6-cp311-cp311-win_amd64.whl", "windows-x64", "3.11", True),
        ("numpy-2.2.6-cp311-cp311-win32.whl", "windows-x64", "3.11", False),
        ("safetensors-0.8.0-cp310-abi3-win_amd64.whl", "windows-x64", "3.13", True),
        ("hf_xet-1.8.0-cp38-abi3-win_arm64.whl", "windows-arm64", "3.11", True),
        ("idna-3.20-py3-none-any.whl", "macos-arm64", "3.10", True),
        ("gguf-0.19.0.tar.gz", "linux-x64", "3.11", False),
        ("not a wheel.whl", "linux-x64", "3.11", False),
    ],
)
def test_which_files_fit(name: str, platform: str, python: str, fits: bool) -> None:
    assert wheels.fits(name, platform, python) is fits


def test_wheels_of_a_folder_are_taken_by_their_hash(tmp_path: Path) -> None:
    near = tmp_path / "near"
    near.mkdir()
    good, other = b"the locked one", b"of the same name elsewhere"
    (near / "idna-3.20-py3-none-any.whl").write_bytes(b"PK" + good)
    (near / "idna-3.20-py2-none-any.whl").write_bytes(b"PK" + other)
    digest = hashlib.sha256(b"PK" + good).hexdigest()
    pin = Pin(python="3.11", requirements=f"idna==3.20 \\\n    --hash=sha256:{digest}\n")
    index = Index(index_urls=("http://127.0.0.1:9/simple",), find_links=(str(near),))
    told: list[str] = []
    wheels.collect(pin, "linux-x64", index, None, tmp_path / "dest", file_sha256, told.append)
    assert [path.name for path in (tmp_path / "dest").iterdir()] == ["idna-3.20-py3-none-any.whl"]
    assert told == ["1/1 idna-3.20-py3-none-any.whl"]
    lost = Pin(python="3.11", requirements=f"idna==3.20 \\\n    --hash=sha256:{A}\n")
    with pytest.raises(OrchestrateError, match=r"no index has a wheel for macos-x64 of idna 3\.20"):
        wheels.collect(lost, "macos-x64", index, None, tmp_path / "none", file_sha256, told.append)
