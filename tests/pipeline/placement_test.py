"""The stage folders of runs that share a disk and no locks."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock

from llamacpp_orchestrator.job import spec
from llamacpp_orchestrator.job.layout import Output
from llamacpp_orchestrator.pipeline import placement
from llamacpp_orchestrator.pipeline.build import Build
from llamacpp_orchestrator.system.command import Command


def test_what_another_machine_makes_is_left_alone_until_it_has_gone(tmp_path: Path) -> None:
    output = Output(path=tmp_path / "dist" / "m.gguf", kind="model", type="f16", model=spec.Model(source="a/b", name="m"))
    build = Build(output=output, name="m.gguf", command=Command(()), portable_argv=(), inputs=(), recipes=("r",))
    (tmp_path / "locks").mkdir()
    key = build.stage.name.split(".")[1]
    theirs = tmp_path / "dist" / f".{key}.others.stage"
    theirs.mkdir(parents=True)
    locks = placement.Locks(tmp_path / "locks")
    with FileLock(theirs / placement.MARK):
        assert placement.prepare(locks, build, False, lambda text: None)
        assert theirs.is_dir() and build.stage.is_dir()
        locks.release(build)
    assert placement.prepare(locks, build, False, lambda text: None)
    assert not theirs.exists() and build.stage.is_dir()
    locks.release(build)
