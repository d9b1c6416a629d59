"""The fence around what reads other people's files: put up before a program begins, and never taken down.

Called as sandbox.py FENCE PROGRAM ARGUMENT..., with the fence as JSON: {"read", "write", "memory"}; becomes the program. With
Landlock (Linux 5.13 and newer) it may read and write nothing but what the fence, Python and the system's own folders hold;
seccomp refuses every socket, Landlock (from its fourth version on) TCP besides. What a kernel lacks is left out: called
without arguments, it says as JSON what there is.
"""

import ctypes
import json
import os
import platform
import resource
import struct
import sys
import sysconfig
from pathlib import Path

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on every processor (asm-generic/unistd.h)
VERSION, BENEATH = 1, 1  # LANDLOCK_CREATE_RULESET_VERSION, LANDLOCK_RULE_PATH_BENEATH
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
# Of what can be written, no devices, sockets, pipes or links are made: bits 6, 9, 10, 11 and 12 (linux/landlock.h).
FIRST, REFER, TRUNCATE = (1 << 13) - 1, 1 << 13, 1 << 14
MAKE_ODD = 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12
ONLY_FOLDERS = FIRST & ~(EXECUTE | WRITE_FILE | READ_FILE) | REFER
NO_NEW_PRIVILEGES, GET_SECCOMP, SET_SECCOMP, FILTER = 38, 21, 22, 2  # linux/prctl.h, linux/seccomp.h
# Processor → its name for the filter and its numbers of socket(2) and io_uring_setup(2), which could make sockets, too.
CALLS = {"x86_64": (0xC000003E, 41, 425), "aarch64": (0xC00000B7, 198, 425)}
OTHER_TABLE = 0x40000000  # x32's numbers, a second way to the same calls
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | 13  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO with EACCES
SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/etc", "/opt", "/nix/store", "/gnu/store", "/sys")
# Of the processes only itself: the environment of another, ours before all, may hold tokens.
PROC = tuple(f"/proc/{name}" for name in ("self", "cpuinfo", "meminfo", "stat", "version", "filesystems", "sys", "driver"))
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/dri", "/dev/kfd")

libc = ctypes.CDLL(None, use_errno=True)


def apply(fence):
    """Put up a fence around this process, which must have one thread, and everything that it will start."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if fence["memory"]:
        resource.setrlimit(resource.RLIMIT_DATA, (fence["memory"],) * 2)
    if fence["write"]:
        os.environ["TMPDIR"] = fence["write"][0]
        if "tempfile" in sys.modules:
            sys.modules["tempfile"].tempdir = None
    libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    # With what it has compiled: else each program in a fence would compile all that it imports.
    compiled = os.environ.get("PYTHONPYCACHEPREFIX")
    own = [sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), *filter(None, [*sys.path, compiled])]
    graphics = map(str, Path("/dev").glob("nvidia*"))
    given = [place for path in fence["read"] for place in targets(path)]
    landlock([*SYSTEM, *PROC, *own, *given], [*DEVICES, *graphics, *fence["write"]])
    refuse_sockets()


def targets(path):
    """A path, and the files that links below it lead to, which lie elsewhere."""
    places = [path, os.path.realpath(path)]
    for folder, _, files in os.walk(path):
        places += [os.path.realpath(file) for file in map(Path(folder).joinpath, files) if file.is_symlink()]
    return places


def version():
    """The version of Landlock that this kernel has, 0 without."""
    return max(0, libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), VERSION))


def landlock(read, write):
    """Let nothing be read but `read` and `write`, nothing be written but `write`; no TCP, no signal to who is outside."""
    supported = version()
    if not supported:
        return
    handled = FIRST | (REFER if supported >= 2 else 0) | (TRUNCATE if supported >= 3 else 0)
    ruleset = (ctypes.c_uint64 * 3)(handled, 3 if supported >= 4 else 0, 3 if supported >= 6 else 0)
    size = 8 if supported < 4 else 16 if supported < 6 else 24
    rules = must(libc.syscall(CREATE_RULESET, ruleset, ctypes.c_size_t(size), 0))
    for paths, rights in ((read, EXECUTE | READ_FILE | READ_DIR), (write, handled & ~MAKE_ODD)):
        for path in dict.fromkeys(paths):
            try:
                place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue
            allowed = rights if Path(path).is_dir() else rights & ~ONLY_FOLDERS
            must(libc.syscall(ADD_RULE, rules, BENEATH, struct.pack("=Qi", allowed, place), 0))
            os.close(place)
    must(libc.syscall(RESTRICT_SELF, rules, 0))
    os.close(rules)


def refuse_sockets():
    """Let no socket be made: neither to the network, nor to a service of this machine."""
    if platform.machine() not in CALLS:
        return
    processor, *refused = CALLS[platform.machine()]
    checks = [(0x15, *refused[:1]), (0x15, *refused[1:]), (0x35, OTHER_TABLE)]  # equal, equal, equal or above
    program = [(0x20, 0, 0, 4), (0x15, 0, len(checks) + 2, processor), (0x20, 0, 0, 0)]
    program += [(test, len(checks) - at, 0, number) for at, (test, number) in enumerate(checks)]
    program += [(0x06, 0, 0, ALLOW), (0x06, 0, 0, REFUSE)]
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    # A kernel without filters answers with an error, and there is one layer less.
    libc.prctl(SET_SECCOMP, FILTER, struct.pack("@HP", len(program), ctypes.addressof(buffer)), 0, 0)


def must(answer):
    """Return a call's answer; OSError where it is a failure."""
    if answer < 0:
        raise OSError(ctypes.get_errno(), f"Landlock: {os.strerror(ctypes.get_errno())}")
    return answer


def main():
    if len(sys.argv) < 2:
        seccomp = platform.machine() in CALLS and libc.prctl(GET_SECCOMP, 0, 0, 0, 0) >= 0
        print(json.dumps({"landlock": version(), "seccomp": seccomp}))
        return
    apply(json.loads(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
