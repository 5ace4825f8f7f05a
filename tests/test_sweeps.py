"""Sweeps as a whole, over every launcher: what is shared is computed once, failures are told, a rerun does what is missing."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.commands import ROOT

LAUNCHERS = {
    "basic": [],
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit": ["hydra/launcher=submitit_local"],
    "ray": ["hydra/launcher=ray"],
}
PACKAGES = {"joblib": "joblib_launcher", "submitit": "submitit_launcher", "ray": "ray_launcher"}


def start(outputs, *overrides):
    """A sweep of jobs that take no time, in a fresh interpreter."""
    arguments = [sys.executable, "-m", "tests.pretend_run", "-m", f"outputs={outputs}", "distill=none", *overrides]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(arguments, cwd=ROOT, env=environment, start_new_session=True, **pipes)


def sweep(outputs, *overrides):
    running = start(outputs, *overrides)
    out, error = running.communicate(timeout=300)
    return subprocess.CompletedProcess(overrides, running.returncode, out, error)


def rows(outputs):
    return {json.loads(path.read_text())["settings"]["method"]["k"]: path for path in Path(outputs).glob("t2i/*/*/result.json")}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_failed_job_neither_stops_nor_hides_the_others(tmp_path, launcher):
    if launcher in PACKAGES and find_spec(f"hydra_plugins.hydra_{PACKAGES[launcher]}") is None:
        pytest.skip(f"needs the {launcher} launcher")
    done = sweep(tmp_path, "method.k=13,4,999,8", *LAUNCHERS[launcher])
    assert done.returncode == 1, done.stderr
    assert set(rows(tmp_path)) == {4, 8}
    assert "2 of 4 jobs are done" in done.stdout
    assert "failed: #0: RuntimeError: out of luck" in done.stderr and "failed: #2: method.k=999 is too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(list(tmp_path.glob("t2i/*/*/error.txt"))) == 2
    (page,) = tmp_path.glob("sweeps/*/report/index.html")
    assert "method.k=4" in (text := page.read_text()) and "failed: " in text and "out of luck" in text
    assert len((tmp_path / "scored.log").read_text().splitlines()) == 1


def test_a_killed_sweep_goes_on_where_it_was(tmp_path):
    overrides = ["method.k=1,2,3,4,5,6"]
    running = start(tmp_path, *overrides)
    deadline = time.monotonic() + 120
    while len(rows_there := list(tmp_path.glob("t2i/*/*/result.json"))) < 2:
        assert time.monotonic() < deadline and running.poll() is None
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    before = {path: path.stat().st_mtime_ns for path in rows_there}
    done = sweep(tmp_path, *overrides)
    assert done.returncode == 0, done.stderr
    assert set(rows(tmp_path)) == {1, 2, 3, 4, 5, 6} and "6 of 6 jobs are done" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in rows_there} == before
    assert len(list((tmp_path / "sweeps").iterdir())) == 1
    (page,) = tmp_path.glob("sweeps/*/report/index.html")
    seen = page.read_bytes()
    assert sweep(tmp_path, *overrides).returncode == 0 and page.read_bytes() == seen


def test_bad_sweeps_are_told_in_one_line(tmp_path):
    for override, told in {
        "method.nokey=1,2": "Could not override 'method.nokey'",
        "method=ld_prune,bk_sdm": "ld_pruner",
    }.items():
        done = sweep(tmp_path, override)
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("error: ") and told in done.stderr


def test_optuna_is_told_of_both_objectives(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    done = sweep(tmp_path, "experiment=pareto", "hydra.sweeper.n_trials=3", "hydra.sweeper.params={method.k: 'range(8,64)'}")
    assert done.returncode == 0, done.stderr
    assert "values" in (tmp_path / "optimization_results.yaml").read_text()


def test_objectives_that_are_not_there_are_named(tmp_path):
    done = sweep(tmp_path, "method.k=4", "objectives=[speed]")
    assert done.returncode == 1 and "name some of parameters, macs" in done.stderr
