"""One warm interpreter: imports once what upstream's scripts import, then forks one child per conversion.

Says {"ready"} on standard output once that is done. Then reads one JSON request a line from standard input: {"id", "argv":
[script, ...], "cwd", "env", "log", "fence"}; answers {"id", "code", "late", "wrote"} a line when that child has ended, with the
number of bytes that it has written to anything, null where the system does not count them. A child runs the
script as `__main__` exactly as a fresh process would: argv, sys.path[0], cwd, environment and its own log, in its fence; when
the seconds of that are over it is killed, and late. The end of standard input ends everything.
Called as fork_server.py TREE SCRIPT... [-- FIRST ARGUMENT...], with the scripts that will be asked for. FIRST is a script that
runs before all else in this interpreter itself, so that what it imports is there for all that are asked for later.
"""

import ast
import ctypes
import gc
import importlib
import json
import mmap
import os
import pkgutil
import re
import select
import signal
import sys
import time
import types
from pathlib import Path

import sandbox

PR_SET_PDEATHSIG = 1
MADV_HUGEPAGE, MADV_COLLAPSE = 14, 25
LARGE_PAGE = 1 << 21
MANY = 25  # from here on what `collapse` takes comes back
CODE = {}  # of the scripts that will be asked for


def preload(root, scripts):
    """Import what some scripts import, and the modules of their tree with what these import; what is missing is left to them.

    Most of what a short conversion takes would else go into the tree's modules, anew in each child.
    """
    path = sys.path[:]
    sys.path[:1] = [root, str(Path(root, "gguf-py"))]  # as the scripts see to it themselves
    for script in scripts:
        source = Path(script).read_bytes()
        CODE[script] = compile(source, script, "exec")
        for module, names in imported(source):
            touch(module, names)
    for own in pkgutil.iter_modules([str(Path(root, "conversion"))]):
        touch(f"conversion.{own.name}", ())
    touch("multiprocessing.synchronize", ())  # of which the bar that upstream shows takes a lock
    sys.path[:] = path


def imported(source):
    """The modules that a source imports at its top, each with the names that it takes of it."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level and node.module != "__future__":
            yield node.module, tuple(alias.name for alias in node.names)


def touch(module, names):
    """Import a module and read names from it, which makes lazy packages load what stands behind them."""
    try:
        loaded = importlib.import_module(module)
        for name in names:
            getattr(loaded, name, None)
    except Exception:
        pass


def begin_with(argv):
    """Run a script here itself; what it says goes to the log."""
    path = sys.path[:]
    sys.argv = argv
    become(argv[0])
    sys.path[:] = path


def become(script):
    """Run a script as the main module of this process."""
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__file__ = script
    exec(CODE.get(script) or compile(Path(script).read_bytes(), script, "exec"), main.__dict__)


def collapse():
    """Put this process's memory into large pages, where the system can: to fork copies the table of pages, half of what it takes.

    madvise(2): MADV_COLLAPSE is of Linux 6.1; it need not succeed.
    """
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    for begin, end in re.findall(r"^(\w+)-(\w+) rw-p 00000000 00:00 0 ", maps, re.MULTILINE):
        first, last = -(-int(begin, 16) // LARGE_PAGE) * LARGE_PAGE, int(end, 16) // LARGE_PAGE * LARGE_PAGE
        for advice in (MADV_HUGEPAGE, MADV_COLLAPSE) if last > first else ():
            libc.madvise(first, last - first, advice)


def written():
    """The bytes that this process has written to anything, 0 where the system does not count them."""
    try:
        return int(re.search(r"^wchar: (\d+)$", Path("/proc/self/io").read_text(), re.MULTILINE)[1])
    except (OSError, TypeError):
        return 0


def child(request, wrote):
    """Become the script: never returns; leaves word of how much it has written."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = request["argv"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    code = 0
    try:
        if request["fence"] and sys.platform == "linux":
            sandbox.apply(request["fence"])
        become(sys.argv[0])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    try:
        sys.stdout.flush()
        sys.stderr.flush()
        wrote[:] = written().to_bytes(8, "little")
    finally:
        os._exit(code)


def serve(answers):
    """Fork for each request until standard input ends, then end every child that is left."""
    running, ends, late = {}, {}, set()
    buffer, forks = b"", 0
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    while True:
        left = min(ends.values()) - time.monotonic() if ends else None
        ready, _, _ = select.select([0, wake], [], [], left if left is None else max(0.0, left))
        for pid in [pid for pid, end in ends.items() if end <= time.monotonic()]:
            del ends[pid]
            late.add(pid)
            os.kill(pid, signal.SIGKILL)
        if wake in ready:
            os.read(wake, 4096)
            reap(running, ends, late, answers)
        if 0 in ready:
            chunk = os.read(0, 65536)
            if not chunk:
                break
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                request = json.loads(line)
                forks += 1
                if forks == MANY and sys.platform == "linux":
                    collapse()
                wrote = mmap.mmap(-1, 8)  # shared with the child: of one that has ended, only root may read its count
                pid = os.fork()
                if not pid:
                    signal.set_wakeup_fd(-1)
                    os.close(answers)
                    child(request, wrote)
                running[pid] = request["id"], wrote
                if request["fence"] and request["fence"]["seconds"]:
                    ends[pid] = time.monotonic() + request["fence"]["seconds"]
    for pid in running:
        os.kill(pid, signal.SIGKILL)


def reap(running, ends, late, answers):
    """Answer for each child that has ended; the code is negative for a signal."""
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        ends.pop(pid, None)
        number, wrote = running.pop(pid)
        answer = {"id": number, "code": os.waitstatus_to_exitcode(status), "late": pid in late}
        answer["wrote"] = int.from_bytes(wrote[:], "little") or None
        late.discard(pid)
        os.write(answers, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    answers = os.dup(1)  # what packages print must not come between the answers
    os.dup2(2, 1)
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    # All that is imported stays: to look for garbage in it takes a sixth of the time, here and in each child again.
    gc.disable()
    if words[end + 1 :]:
        begin_with(words[end + 1 :])
    preload(words[0], words[1:end])
    gc.freeze()
    gc.enable()
    os.write(answers, b'{"ready": true}\n')
    serve(answers)
