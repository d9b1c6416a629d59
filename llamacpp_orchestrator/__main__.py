"""The program: one command, the one `except` that turns an error into its words, and the exit code."""

from __future__ import annotations

import io
import os
import sys

try:
    from llamacpp_orchestrator import __version__
    from llamacpp_orchestrator.errors import OrchestrateError
    from llamacpp_orchestrator.errors import Stopped
    from llamacpp_orchestrator.errors import of_python_path
    from llamacpp_orchestrator.errors import of_system
except KeyboardInterrupt:  # stopped in the first tenth of a second, before there is anything to tell
    sys.exit(130)


def main(argv: list[str] | None = None) -> int:
    """Run one command and answer its exit code; every failure is told here and nowhere else."""
    try:
        return _command(argv)
    except OrchestrateError as error:
        _complain(error)
        return error.exit_code
    except Stopped as stopped:
        _complain(OrchestrateError(str(stopped)))
        return stopped.exit_code
    except BrokenPipeError:
        return 1
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        refused = of_system(error)
        if not refused and (shadowed := of_python_path(error)):
            sys.stderr.write(f"error: {shadowed.message}\nhint: {shadowed.hint}\n")  # without any library
            return shadowed.exit_code
        _complain(refused or _bug(error))
        return refused.exit_code if refused else 4


def _command(argv: list[str] | None) -> int:
    # Imported here, so that what goes wrong with a library, or Ctrl-C meanwhile, is told like all else.
    import click

    from llamacpp_orchestrator.cli.app import orchestrate

    try:
        code = orchestrate.main(args=argv, prog_name="orchestrate", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.Abort:
        return 130
    except click.ClickException as error:
        error.show()
        return 2


def _complain(error: OrchestrateError) -> None:
    from llamacpp_orchestrator import console

    console.complain(error, console.voice(sys.stderr, os.environ, quiet=False, verbose=False, progress=False))


def _bug(error: Exception) -> OrchestrateError:
    import platform
    import traceback

    where = f"orchestrate {__version__}, Python {platform.python_version()}, {platform.platform()}"
    said = f"this is a bug in orchestrate, not in your job: {type(error).__name__}: {error}"
    text = f"{said}\n{where}\n{traceback.format_exc().rstrip()}"
    return OrchestrateError(text, "please report the lines above, with the job file")


def entry() -> None:
    """The console script. A thread that hangs in a library must not keep a stopped program alive."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        # Started without one, the next file that is opened, a lock for instance, would take its place in every child.
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123 - as long as we run
    for stream in (sys.stdout, sys.stderr):
        # What a terminal cannot show, as a name in another alphabet, is shown by its number; it is no failure.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    threading = sys.modules.get("threading")
    if threading and threading.active_count() > 1:
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    entry()
