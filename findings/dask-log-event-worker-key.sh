#!/usr/bin/env bash
# distributed 2026.8.0: a task tells something with `Worker.log_event(topic, {...})`, and a client listens with `subscribe_topic`.
#
# A dictionary that has a key `worker` of its own, such as the name that its user gave the worker, arrives with another value there: the
# worker's address. The key is added to every message that is a dictionary, and wins without a word; a message that is a list or a text
# arrives as it was sent. The documentation of log_event speaks of a message of any kind, and not of this.
# Source: distributed/scheduler.py, Scheduler.log_worker_event.
#
# Seen: sent {'worker': 'w1', 'step': 'a'} as a dictionary, and as a text; got {'worker': 'inproc://...', 'step': 'a'}, and the text as it
# was. Ends with 1 where that has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip --disable-pip-version-check --quiet install distributed==2026.8.0
cd "$folder"
"$folder/venv/bin/python" - <<'EOF'
import queue
import sys

from distributed import Client
from distributed import LocalCluster
from distributed import get_worker


def tell(messages):
    for message in messages:
        get_worker().log_event("news", message)


if __name__ == "__main__":
    sent = [{"worker": "w1", "step": "a"}, "worker w1, step a"]
    with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster, Client(cluster) as client:
        news = queue.SimpleQueue()
        client.subscribe_topic("news", news.put)
        client.submit(tell, sent).result()
        got = [news.get(timeout=30)[1] for _ in sent]
    print("sent", sent)
    print("got ", got)
    replaced = got[0]["step"] == "a" and got[0]["worker"].startswith("inproc://") and got[1] == sent[1]
    sys.exit(not replaced)
EOF
