"""What an interpreter will import is compiled beside it: all that loads with a module, nothing that loads later or never."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llamacpp_orchestrator import inside

SOURCES: dict[str, str | bytes] = {
    "whole/__init__.py": "import sys, os\nfrom .first import thing\nfrom . import second as other\nimport later.deep.leaf\n",
    "whole/first.py": """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import only_types
else:
    import for_all
thing = 1
""",
    "whole/second.py": """
try:
    from whole.sub import (  # a list
        one,
        two as three,
    )
except ImportError:
    pass
""",
    "whole/sub/__init__.py": "two = 1\n",
    "whole/sub/one.py": "from ..third import *\n",
    "whole/third.py": """
def f(
    a: int,
) -> None:
    import in_function

class C:
    import in_class

import whole
""",
    "later/__init__.py": "",
    "later/deep/__init__.py": "",
    "later/deep/leaf.py": "import broken, binary as b  # both\nimport namespace.part\nimport above\n",
    "above.py": "from .. import whole\nimport unused\n",
    "broken.py": "import for_broken\ndef f(:\n",
    "binary.py": b"# \xff\n",
    "namespace/part.py": "",
    **{f"{name}.py": "" for name in ("for_all", "for_broken", "only_types", "in_function", "in_class", "unused")},
}
COMPILED = {
    *("whole", "whole.first", "whole.second", "whole.sub", "whole.sub.one", "whole.third", "for_all", "for_broken"),
    *("later", "later.deep", "later.deep.leaf"),
}


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    place = tmp_path / "packages"
    for name, text in SOURCES.items():
        file = place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return place


def begin(packages: Path, *modules: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(packages), "PYTHONPYCACHEPREFIX": str(packages.parent / "bytecode")}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    argv = [sys.executable, str(inside.path("imports")), "--compile", *modules]
    return subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def compiled(packages: Path) -> set[str]:
    """The modules of the packages that have bytecode now."""
    place = packages.parent / "bytecode" / packages.relative_to(packages.anchor)
    files = (path.relative_to(place) for path in place.rglob("*.pyc"))
    names = (".".join((*path.parent.parts, path.name.partition(".")[0])) for path in files)
    return {name.removesuffix(".__init__") for name in names}


def test_all_that_loads_with_a_module_is_compiled(packages: Path) -> None:
    with begin(packages, "whole", "is_not_there") as process:
        assert process.stdout is not None
        assert process.stdout.read() == ""  # what cannot be compiled is for who imports it to tell
    assert process.returncode == 0
    assert compiled(packages) == COMPILED


def test_it_ends_with_who_began_it(packages: Path) -> None:
    chain = {f"p{number}.m": f"import p{number + 1}.m\n" + "x = (1, 2, 3)\n" * 100 for number in range(300)}
    for name, text in chain.items():
        file = packages.joinpath(*name.split(".")).with_suffix(".py")
        file.parent.mkdir()
        file.with_name("__init__.py").touch()
        file.write_text(text)
    with begin(packages, "p0.m") as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdin.close()
        assert process.stdout.read() == ""
    assert process.returncode == 0
    begun = compiled(packages)
    with begin(packages, "p0.m") as process:
        assert process.stdout is not None
        process.stdout.read()
    assert compiled(packages) & set(chain) == set(chain)
    assert len(begun & set(chain)) < len(chain)
