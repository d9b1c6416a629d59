"""The lines for SLURM that the documentation gives, as far as they go without a SLURM: the script that is handed to it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.support import ROOT


def test_the_documented_cluster_asks_slurm_for_one_task_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    lines = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(lines) == 1
    monkeypatch.setattr("dask_jobqueue.SLURMCluster.scale", lambda cluster, n=0, jobs=0, **more: None)
    monkeypatch.setattr("builtins.input", lambda prompt: "")
    names: dict[str, Any] = {}
    exec(lines[0].replace('"port": 8786', '"port": 0, "dashboard_address": None, "host": "127.0.0.1"'), names)  # noqa: S102
    cluster = names["cluster"]
    try:
        script = cluster.job_script()
    finally:
        cluster.close(timeout=10)
    assert "#SBATCH -n 1\n#SBATCH --cpus-per-task=4\n" in script and "#SBATCH -t 04:00:00" in script
    assert re.search(r"#SBATCH --mem=(30|32)G", script) and re.search(r"dask_worker \S+ .*--nthreads 1 ", script)
