"""What a tag's scripts import is found wherever it stands, and an environment that cannot import it is told so."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamacpp_orchestrator.convert import warm_worker
from llamacpp_orchestrator.convert.warm_worker import Warm
from llamacpp_orchestrator.environment import imports
from llamacpp_orchestrator.errors import OrchestrateError
from llamacpp_orchestrator.system import process
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.interpreter import Interpreter
from tests.support import TAG
from tests.support.answer import Answer

SCRIPT = """
import sys, numpy as np
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import only_for_types
else:
    import for_all
from conversion import Model
try:
    import nice_to_have
except ImportError:
    import instead
try:
    import also_needed
finally:
    pass
if len(sys.argv) > 5:
    import sometimes

class Model:
    def set_vocab(self):
        from sentencepiece import sentencepiece_model_pb2 as model
        with open("x"):
            from . import neighbour
            match model:
                case 1:
                    import transformers.models.gpt2
        try:
            from optional.part import thing
        except (ValueError, ModuleNotFoundError):
            thing = None
        try:
            from strict import other
        except ValueError:
            pass

if not TYPE_CHECKING:
    import as_it_runs
if typing.TYPE_CHECKING:
    import only_for_types.too
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A tree with a script like upstream's."""
    (tmp_path / "conversion").mkdir()
    (tmp_path / "gguf-py" / "gguf").mkdir(parents=True)
    (tmp_path / "convert_hf_to_gguf.py").write_text(SCRIPT)
    (tmp_path / "conversion" / "base.py").write_text("import torch\nfrom gguf import x\n")
    (tmp_path / "conversion" / "some.py").write_text("import torch\nimport rare\n")
    (tmp_path / "gguf-py" / "gguf" / "lazy.py").write_text(
        "import numpy as np\nfrom numpy.typing import DTypeLike\nimport json\n"
    )
    return tmp_path


def test_imports_are_found_where_they_stand(small: Path) -> None:
    found = {(each.module, each.names): (each.where, each.needed) for each in imports.external(small)}
    script = "convert_hf_to_gguf.py, line"
    assert found == {
        ("numpy", ()): (f"{script} 2", True),
        ("for_all", ()): (f"{script} 7", True),
        ("also_needed", ()): (f"{script} 14", True),
        ("sometimes", ()): (f"{script} 18", False),
        ("sentencepiece", ("sentencepiece_model_pb2",)): (f"{script} 22", False),
        ("transformers.models.gpt2", ()): (f"{script} 27", False),
        ("strict", ("other",)): (f"{script} 33", False),
        ("as_it_runs", ()): (f"{script} 38", False),
        ("torch", ()): ("conversion/base.py, line 1", True),
        ("rare", ()): ("conversion/some.py, line 2", False),
        ("numpy.typing", ("DTypeLike",)): ("gguf-py/gguf/lazy.py, line 2", True),
    }


@pytest.mark.parametrize("tag", ["0.3.1", "b9760", TAG])
def test_upstreams_own_imports_are_all_seen(tag: str, tree: Callable[[str], Path]) -> None:
    found = {(each.module, name) for each in imports.external(tree(tag)) for name in each.names or ("",)}
    assert {("sentencepiece", "sentencepiece_model_pb2"), ("sentencepiece", "SentencePieceProcessor")} <= found
    assert {module for module, _ in found} >= {"numpy", "torch", "transformers", "safetensors.torch", "yaml", "tqdm"}
    assert not {module for module, _ in found} & {"gguf", "conversion", "os", "__future__"}
    lines = imports.lines(tree(tag))
    assert {"import torch", "from sentencepiece import sentencepiece_model_pb2 as model"} <= lines
    assert not [line for line in lines if line.startswith(("from gguf", "import os", "from conversion", "from __future__"))]


def prove(
    tree: Path,
    entry: Path,
    packages: Path,
    named: set[str],
    overridden: set[str],
    importer: Callable[..., None] = process.stream,
) -> list[str]:
    told: list[str] = []
    how = {"python": sys.executable, "env": (("PYTHONPATH", str(packages)),), "fenced": False}
    interpreter = Interpreter(run=importer, scratch=entry, log=entry / "log", **how)
    read = functools.partial(imports.external, tree)
    imports.prove(entry, interpreter, imports.lines(tree), read, named, overridden, told.append)
    return told


@pytest.fixture
def warm(packages: Path, tmp_path: Path) -> Iterator[Warm]:
    """An interpreter that has not begun."""
    env, scripts = (("PYTHONPATH", str(packages)),), [tmp_path / "tree" / "convert_hf_to_gguf.py"]
    with warm_worker.lent(sys.executable, tmp_path, env, tmp_path / "warm.log", scripts) as warm:
        yield warm


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Packages as an environment may have them: whole, broken, and of another version than a script expects."""
    place = tmp_path / "packages"
    texts = {"whole": "inner = 1", "broken": "", "broken.generated": "from whole import gone", "crash": "import os; os._exit(3)"}
    for name, text in texts.items():
        folder = place.joinpath(*name.split(".")[:-1]) if "." in name else place / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ("__init__.py" if "." not in name else f"{name.rpartition('.')[2]}.py")).write_text(text)
    for name in texts:
        if "." not in name:
            (place / f"{name}-1.5.dist-info").mkdir()
            (place / f"{name}-1.5.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
            (place / f"{name}-1.5.dist-info" / "top_level.txt").write_text(name)
    return place


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        tree = tmp_path / "tree"
        tree.mkdir(exist_ok=True)
        (tree / "convert_hf_to_gguf.py").write_text(text)
        return tree

    return write


GENERATED = "def f():\n    from broken import generated\n"
PLACE = "(convert_hf_to_gguf.py, line 2) fails with broken 1.5: ImportError: cannot import name 'gone' from 'whole'"
ABSENT = "`import absent` (convert_hf_to_gguf.py, line 1) fails with no absent installed: ModuleNotFoundError"
OUTER = "def f():\n    from whole import outer"
REFUSED = (
    ("a part that breaks", GENERATED, {"broken"}, set(), f"from broken import generated` {PLACE}", "broken==VERSION"),
    ("a part of an override", GENERATED, {"broken"}, {"broken"}, "fails with broken 1.5", "another version of broken"),
    ("what is needed and not there", "import absent", set(), set(), ABSENT, "absent==VERSION"),
    ("a name that is gone", OUTER, {"whole"}, set(), "cannot import name 'outer' from 'whole'", ""),
    ("one that takes Python down", "import whole\nimport crash", set(), set(), "ended with exit code 3 at `import crash`", ""),
)


@pytest.mark.parametrize(
    ("text", "named", "overridden", "said", "way"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
@pytest.mark.parametrize("own", [True, False], ids=["a process of its own", "the warm interpreter"])
def test_what_cannot_be_imported_is_told_with_its_package_and_the_way_out(
    own: bool,
    text: str,
    named: set[str],
    overridden: set[str],
    said: str,
    way: str,
    script: Callable[[str], Path],
    packages: Path,
    warm: Warm,
    tmp_path: Path,
) -> None:
    if not own and not warm_worker.can_fork(sys.platform):
        pytest.skip("no interpreter is forked here")
    with pytest.raises(OrchestrateError) as failed:
        prove(script(text), tmp_path, packages, named, overridden, process.stream if own else warm.load)
    assert said in failed.value.message and way in failed.value.hint
    assert "environment.overrides" in failed.value.hint and failed.value.log == tmp_path / "log"
    assert not (tmp_path / imports.PROVEN).exists()


@pytest.mark.parametrize(
    ("text", "named", "overridden", "notes"),
    [
        ("def f():\n    import mistral_common", {"whole"}, set(), 0),
        ("def f():\n    from broken import generated", {"whole"}, set(), 0),
        ("try:\n    import absent\nexcept ImportError:\n    pass", {"absent"}, set(), 0),
        ("def f():\n    from whole import outer", {"whole"}, {"whole"}, 1),
        ("import whole\nfrom whole import inner\nfrom broken import *", {"whole", "broken"}, set(), 0),
    ],
)
def test_what_upstream_does_not_ask_for_is_no_failure(
    text: str, named: set[str], overridden: set[str], notes: int, script: Callable[[str], Path], packages: Path, tmp_path: Path
) -> None:
    told = prove(script(text), tmp_path, packages, named, overridden)
    assert len([line for line in told if line.startswith("note:")]) == notes
    assert json.loads((tmp_path / imports.PROVEN).read_text())


def test_what_was_imported_once_is_not_imported_again(script: Callable[[str], Path], packages: Path, tmp_path: Path) -> None:
    assert prove(script("import whole"), tmp_path, packages, set(), set())
    assert not prove(script("# another tag\nimport whole  # noqa"), tmp_path, packages, set(), set())
    with pytest.raises(OrchestrateError, match="no absent installed"):
        prove(script("import whole\nimport absent"), tmp_path, packages, set(), set())
    assert prove(script("import whole\nfrom whole import inner"), tmp_path, packages, set(), set())


@pytest.mark.skipif(not warm_worker.can_fork(sys.platform), reason="no interpreter is forked here")
def test_what_the_warm_interpreter_has_tried_is_there_for_what_it_runs(
    script: Callable[[str], Path], packages: Path, warm: Warm, tmp_path: Path
) -> None:
    (packages / "whole" / "__init__.py").write_text("import sys; print('words of a package'); sys.stdout.flush(); inner = 1")
    prove(script("import whole\ndef f():\n    from whole import inner"), tmp_path, packages, set(), set(), warm.load)
    assert "words of a package" in (tmp_path / "log").read_text()
    probe = tmp_path / "probe.py"
    probe.write_text("import sys; print('whole' in sys.modules, sys.path[0], sys.argv)")
    for name in ("one", "two"):
        command = Command((sys.executable, str(probe), name), cwd=str(tmp_path), env=(("PYTHONPATH", str(packages)),))
        warm.convert(command, tmp_path / name, print)
        said = (tmp_path / name).read_text().splitlines()[-1]
        assert said == f"True {tmp_path} {[str(probe), name]}"
    (tmp_path / imports.PROVEN).unlink()
    assert prove(script("import whole"), tmp_path, packages, set(), set(), warm.load), "where it works already"
    assert "import whole" in (tmp_path / "log").read_text().splitlines()[-1]


@pytest.mark.skipif(not warm_worker.can_fork(sys.platform), reason="no interpreter is forked here")
def test_an_import_that_does_not_end_is_ended(script: Callable[[str], Path], packages: Path, warm: Warm, tmp_path: Path) -> None:
    (packages / "whole" / "__init__.py").write_text("import time; time.sleep(60)")
    with pytest.raises(OrchestrateError, match="import whole"):
        prove(script("import whole"), tmp_path, packages, set(), set(), functools.partial(warm.load, limit=0.5))


@pytest.mark.slow
def test_a_set_up_ends_with_a_package_that_cannot_be_imported(
    orchestrate: Callable[..., Answer], job: Callable[..., Path], data: Path, shared_cache: Path
) -> None:
    # 0.2.3 has code that a protobuf below 5, as upstream pins it, cannot run.
    file = job(
        str(data / "tiny-llama"),
        environment={"overrides": ["torch==2.13.0", "sentencepiece==0.2.3"]},
        binaries={"backend": "none"},
    )
    answer = orchestrate("setup", file)
    assert answer.code == 1
    assert "sentencepiece 0.2.3: ImportError: cannot import name 'runtime_version'" in answer.err
    assert "environment.overrides" in answer.err and "environment.log" in answer.err
    assert not list(shared_cache.glob("environments/*/venv/**/sentencepiece-0.2.3.dist-info"))
