"""The command line of a tag's own script or program."""

from __future__ import annotations

from llamacpp_orchestrator.commands.execution import complete
from llamacpp_orchestrator.commands.execution import log_folder
from llamacpp_orchestrator.commands.lock import settled
from llamacpp_orchestrator.context import Options
from llamacpp_orchestrator.context import Work
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.lock import tree as lock_tree
from llamacpp_orchestrator.pipeline import binaries
from llamacpp_orchestrator.pipeline import build as pipeline_build
from llamacpp_orchestrator.pipeline import setup
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.command import tool_env
from llamacpp_orchestrator.system.scheduler import Reporter
from llamacpp_orchestrator.system.scheduler import Step


def exec_command(work: Work, argv: tuple[str, ...], report: Reporter) -> Command:
    """The command that runs a script of the tree or a program of the release, once both are here."""
    (name, *rest), script = argv, argv[0].endswith(".py")
    lock = settled(work, Options(), report, binaries=not script)
    log = log_folder(work) / "environment.log"
    made = (
        Step(name="environment", action=setup.environment_action(work, lock, log), log=log)
        if script
        else setup.binaries_step(work, lock, log_folder(work) / "binaries.log")
    )
    complete([made], Options(), report)
    if not script:
        program = binaries.tool(work, lock, name)
        return Command((str(program), *rest), env=tool_env(program))
    tree = lock_tree.get_tree(work, lock.llama_cpp, lambda text: None)
    if not (tree / name).is_file():
        raise JobError(
            f"{lock.llama_cpp.tag} has no script {name}", "it has " + ", ".join(sorted(path.name for path in tree.glob("*.py")))
        )
    return Command((str(pipeline_build.python(work, lock)), str(tree / name), *rest), env=pipeline_build.converter_env(work))
