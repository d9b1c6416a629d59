#!/usr/bin/env bash
# uv 0.13.9: `uv pip compile` against a package index on loopback that answers every request with 401 or with 403.
#
# By its own strategy (first-index) uv says in a hint that the index refused, and how. By unsafe-best-match or unsafe-first-match, which
# one sets to take packages from several indexes as pip does, the same refusal is not mentioned at all: the package "was not found in
# the package registry", so that a login that has expired looks like a misspelt name.
# Source: the released program, as PyPI has it; its documentation of --index-strategy does not speak of this.
#
# Seen: {'first-index': [True, True], 'unsafe-first-match': [False, False], 'unsafe-best-match': [False, False]}, whether the hint stands
# there at 401 and at 403. Ends with 1 where that has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip --disable-pip-version-check --quiet install uv==0.13.9
cd "$folder"
env -u UV_INDEX -u UV_FIND_LINKS -u UV_EXTRA_INDEX_URL UV_HTTP_RETRIES=0 "$folder/venv/bin/python" - <<'EOF'
import http.server
import os
import pathlib
import subprocess
import sys
import threading

from uv import find_uv_bin


class Refusing(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        status = int(self.path.split("/")[1])
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *words):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
threading.Thread(target=server.serve_forever, daemon=True).start()
pathlib.Path("needed.in").write_text("numpy\n")
seen = {}
for strategy in ("first-index", "unsafe-first-match", "unsafe-best-match"):
    seen[strategy] = []
    for status in (401, 403):
        words = [find_uv_bin(), "pip", "compile", "--no-config", "--no-cache", "needed.in", "--index-strategy", strategy]
        words += ["--default-index", f"http://127.0.0.1:{server.server_port}/{status}/simple"]
        done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"NO_PROXY": "127.0.0.1"})
        assert done.returncode == 1 and "was not found in the package registry" in " ".join(done.stderr.split()), done.stderr
        seen[strategy].append(str(status) in done.stderr)
print(seen)
sys.exit(seen != {"first-index": [True, True], "unsafe-first-match": [False, False], "unsafe-best-match": [False, False]})
EOF
