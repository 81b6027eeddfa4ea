"""Each benchmark runs, at a size that measures nothing: most of the time goes into starting what is measured."""

import os
import subprocess
import sys

import pytest

from lyo import env

ENDS = {
    "foundation": "Lyo jobs: row, claim, lease, end, stream",
    "engine": "engine.json",
    "train": "train.json",
    "feed": "GET /search, 1 concurrent",
    "fairness": "Lyo jobs, by turns",
    "soak": "all bounds held",
}


@pytest.mark.nightly
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ENDS)
def test_a_benchmark_runs(name: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "LYO_HOME"}
    run = [sys.executable, "-m", f"tests.bench.{name}", "--smoke"]
    done = subprocess.run(run, cwd=env.BASE_DIR, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert ENDS[name] in done.stdout
