"""The interpreter for upstream's scripts: one for which its pins have wheels."""

from __future__ import annotations

import pytest

from llamacpp_orchestrator.environment import python_version
from llamacpp_orchestrator.environment import requirements


@pytest.mark.parametrize(
    ("allowed", "nearby", "running", "installed", "first"),
    [
        ([{"3.10", "3.11", "3.12"}], [], "3.13", ["3.13"], "3.12"),
        ([{"3.10", "3.11", "3.12"}, {"3.11", "3.12"}], [], "3.11", ["3.11"], "3.11"),
        ([{"3.11", "3.12"}], [{"3.11"}], "3.12", ["3.12"], "3.11"),
        ([{"3.11", "3.12"}], [], "3.13", ["3.11", "3.13"], "3.11"),
        ([], [], "3.13", ["3.13"], "3.13"),
        ([{"3.9"}], [], "3.13", ["3.13"], None),
    ],
)
def test_the_interpreter_is_one_that_the_pins_allow(
    allowed: list[set[str]], nearby: list[set[str]], running: str, installed: list[str], first: str | None
) -> None:
    assert next(iter(python_version.order(allowed, nearby, running, installed)), None) == first


def test_the_pins_of_2024_do_not_allow_python_3_13() -> None:
    tags = ["cp310-cp310", "cp311-cp311", "cp312-cp312"]
    platforms = ("manylinux2014_x86_64", "manylinux2014_aarch64", "macosx_11_0_arm64", "macosx_10_9_x86_64", "win_amd64")
    wheels = [f"torch-2.2.2-{tag}-{platform}.whl" for tag in tags for platform in platforms]
    newer = [f"torch-2.6.0-cp313-cp313-{platform}.whl" for platform in platforms]
    wanted = requirements.parse("torch~=2.2.1")
    assert python_version.supported(wanted, [*wheels, *newer, "torch-2.2.2.tar.gz", "x.whl"]) == {"3.10", "3.11", "3.12"}
    assert python_version.supported(requirements.parse("torch"), ["torch-1.0-py3-none-any.whl"]) == set(python_version.MINORS)
