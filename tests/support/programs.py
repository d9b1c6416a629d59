"""Programs that tests run: those beside the interpreter, and stand-ins, which are shell scripts."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def installed(name: str) -> Path:
    """A program that lies beside the interpreter that runs the tests."""
    return Path(sys.executable).with_name(name + (".exe" if os.name == "nt" else ""))


def shell(*lines: str) -> str:
    """The text of a shell script."""
    return "\n".join(("#!/bin/sh", *lines, ""))


def script(path: Path, *lines: str) -> Path:
    """Write a shell script that may be run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(shell(*lines), encoding="utf-8")
    path.chmod(0o755)
    return path


# Tells its version, and does nothing else.
IDLE = shell('echo "version: 11434"')
# The same of an early build, whose words come on stderr.
EARLY = shell("echo 'version: 3878 (d5ed2b92)' >&2")
# Needs a newer C library than any machine has.
NEWER = shell("echo \"$0: /lib/libc.so.6: version 'GLIBC_2.99' not found (required by $0)\" >&2", "exit 1")
# llama-quantize: copies what it is given, as a quantization to the type that the file has already would.
TOOL = shell(
    '[ "$1" = --version ] && { echo "version: 11434"; exit 0; }',
    'echo "[ 1/ 2] x"',
    '[ "$3" = Q9 ] && { echo "invalid ftype"; exit 1; }',
    'cp "$1" "$2"',
)
# It waits where {0}/wait is, for good as far as any test is concerned; as llama-completion too.
SLOW = TOOL.replace('cp "$1"', '[ -n "$3" ] && [ -e "{0}/wait" ] && sleep 600\ncp "$1"').replace(
    'echo "[ 1/ 2]', '[ "$1" = -m ] && { [ -e "{0}/wait" ] && sleep 600; exit 0; }\necho "[ 1/ 2]'
)
# It lists types, says what llama-quantize does of rows that do not fit, and kills itself or waits where {0}/kill or {0}/wait is.
ODD = TOOL.replace(
    'cp "$1" "$2"',
    """if [ "$1" = --help ]; then
  printf 'Allowed quantization types:\\n 15 or Q4_K_M : x\\n 7 or Q8_0 : x\\n 38 or MXFP4_MOE : x\\n'
  exit 1
fi
[ "$3" = Q4_K_M ] && echo "blk.0.x - ncols 64 not divisible by 256 (required for type q4_K) -> falling back to q5_0"
[ -e "{0}/kill" ] && kill -9 $$
while [ "$3" = Q8_0 ] && [ -e "{0}/wait" ]; do sleep 0.02; done
cp "$1" "$2" """,
)


def completion(path: Path, words: str) -> Path:
    """llama-completion: tells its options, repeats its arguments, and then does what is given."""
    return script(path, 'case "$*" in --help) echo "usage: -no-cnv"; exit 0;; esac', 'echo "$@" >&2', words)


def ollama(folder: Path, calls: Path, words: str, code: int, version: str) -> None:
    """ollama: keeps what it was called with as lines of JSON, says its words and ends with a code; it may have no version."""
    folder.mkdir(exist_ok=True)
    program = folder / "ollama.py"
    program.write_text(
        "import json, os, sys\n"
        f"if sys.argv[1:] == ['--version']:\n    print({version!r})\n    sys.exit({0 if version else 1})\n"
        f"open({str(calls)!r}, 'a').write(json.dumps([sys.argv[1:], os.getcwd(), sorted(os.environ)]) + '\\n')\n"
        f"print({words!r})\nsys.exit({code})\n",
        encoding="utf-8",
    )
    if os.name == "nt":
        (folder / "ollama.bat").write_text(f'@"{sys.executable}" "{program}" %*\n', encoding="utf-8")
    else:
        script(folder / "ollama", f'exec "{sys.executable}" "{program}" "$@"')
