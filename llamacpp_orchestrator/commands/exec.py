"""The command line of a tag's own script or program."""

from __future__ import annotations

from llamacpp_orchestrator.commands.execution import complete
from llamacpp_orchestrator.commands.execution import quietly
from llamacpp_orchestrator.commands.lock import settled
from llamacpp_orchestrator.commands.setup import job_run
from llamacpp_orchestrator.context import Context
from llamacpp_orchestrator.context import Options
from llamacpp_orchestrator.errors import JobError
from llamacpp_orchestrator.lock import tree as lock_tree
from llamacpp_orchestrator.lock.pinned_job import PinnedJob
from llamacpp_orchestrator.pipeline import setup
from llamacpp_orchestrator.system.command import Command
from llamacpp_orchestrator.system.command import tool_env
from llamacpp_orchestrator.system.scheduler import Reporter
from llamacpp_orchestrator.system.scheduler import performing


def exec_command(context: Context, argv: tuple[str, ...], report: Reporter) -> Command:
    """The command that runs a script of the tree or a program of the release, once both are here."""
    (name, *rest), script = argv, argv[0].endswith(".py")
    report = quietly(report)  # the last words are the program's own
    pinned = PinnedJob(context, settled(context, Options(), report, binaries=not script))
    run = job_run(pinned, Options())
    step = setup.steps(pinned, run.logs)["environment" if script else "binaries"]
    complete([step], performing(setup.ACTIONS, run), Options(), report)
    if not script:
        program = run.tool(name)
        return Command((str(program), *rest), env=tool_env(program))
    tree = lock_tree.get_tree(context, pinned.lock.llama_cpp, lambda text: None)
    if not (tree / name).is_file():
        scripts = ", ".join(sorted(path.name for path in tree.glob("*.py")))
        raise JobError(f"{pinned.tag} has no script {name}", f"it has {scripts}")
    return Command((str(pinned.python), str(tree / name), *rest), env=pinned.script_env)
