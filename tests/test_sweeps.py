"""Sweeps as a whole, over every launcher: what is shared is computed once, failures are told, a rerun does what is missing."""

import json
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.commands import ROOT, run, start

pytestmark = pytest.mark.slow

LAUNCHERS = {
    "basic": [],
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit": ["hydra/launcher=submitit_local"],
    "ray": ["hydra/launcher=ray"],
}


def arguments(outputs, *overrides, alone=False):
    """Of a sweep of jobs that take no time, or of one job `alone`."""
    return ["-m", "tests.pretend_run", *([] if alone else ["-m"]), f"outputs={outputs}", "distill=none", *overrides]


def sweep(outputs, *overrides, alone=False):
    return run(*arguments(outputs, *overrides, alone=alone))


def started(outputs, *overrides):
    return start(*arguments(outputs, *overrides))


def sweep_afresh(outputs, *overrides):
    """In a fresh interpreter: launchers start their workers as they find it."""
    command = [sys.executable, *arguments(outputs, *overrides)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def rows(outputs):
    return {json.loads(path.read_text())["settings"]["method"]["k"]: path for path in Path(outputs).glob("t2i/*/*/result.json")}


def wait_until(seen, running, limit=120):
    deadline = time.monotonic() + limit
    while not seen():
        assert time.monotonic() < deadline and running.process.is_alive()
        time.sleep(0.01)


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.exhaustive
def test_a_failed_job_neither_stops_nor_hides_the_others(tmp_path, launcher):
    if launcher == "ray" and find_spec("hydra_plugins.hydra_ray_launcher") is None:
        pytest.skip("ray is an extra that the tests do not install")
    begin = sweep if launcher == "basic" else sweep_afresh
    asked = [13, 4, 999, 8] if launcher == "basic" else [13, 4]  # others start an interpreter for each
    done = begin(tmp_path, f"method.k={','.join(map(str, asked))}", *LAUNCHERS[launcher])
    assert done.returncode == 1, done.stderr
    assert set(rows(tmp_path)) == {4, 8}.intersection(asked)
    assert f"{len(asked) // 2} of {len(asked)} jobs are done" in done.stdout
    assert "failed: #0: RuntimeError: out of luck" in done.stderr and "Traceback" not in done.stderr
    assert ("failed: #2: method.k=999 is too large" in done.stderr) == (999 in asked)
    assert len(list(tmp_path.glob("t2i/*/*/error.txt"))) == len(asked) // 2
    (page,) = tmp_path.glob("sweeps/*/report/index.html")
    assert "method.k=4" in (text := page.read_text()) and "failed: " in text and "out of luck" in text
    assert len((tmp_path / "scored.log").read_text().splitlines()) == 1


@pytest.mark.exhaustive
def test_a_killed_sweep_goes_on_where_it_was(tmp_path):
    overrides = ["method.k=1,2,3,4,5,6"]
    running = started(tmp_path, *overrides)
    wait_until(lambda: len(list(tmp_path.glob("t2i/*/*/result.json"))) > 1, running)
    running.kill()
    rows_there = list(tmp_path.glob("t2i/*/*/result.json"))
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
        "method.nokey=1,2": "method.nokey: there is no such setting; there are k, ratio",
        "method=ld_prune,bk_sdm": "ld_pruner",
        "experiment=bk_sdm/mian": "experiment/bk_sdm/mian",
        "preset=bk_sdm/smal": "preset/bk_sdm/smal",
    }.items():
        done = sweep(tmp_path, override)
        assert done.returncode in (1, 2) and len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("error: ") and told in done.stderr


@pytest.mark.exhaustive
def test_optuna_is_told_of_both_objectives(tmp_path):
    done = sweep(tmp_path, "experiment=pareto", "hydra.sweeper.n_trials=3", "hydra.sweeper.params={method.k: 'range(8,64)'}")
    assert done.returncode == 0, done.stderr
    (kept,) = tmp_path.glob("sweeps/*/optimization_results.yaml")
    assert "values" in kept.read_text() and kept.read_bytes() == (tmp_path / "optimization_results.yaml").read_bytes()
    assert sweep(tmp_path, "method.k=4").returncode == 0
    assert list(tmp_path.glob("sweeps/*/optimization_results.yaml")) == [kept]  # of the study alone


def test_objectives_that_are_not_there_are_named(tmp_path):
    done = sweep(tmp_path, "method.k=4", "objectives=[speed]")
    assert done.returncode == 1 and "speed is no figure of a student" in done.stderr
    assert not rows(tmp_path)  # told before the work
    done = sweep(tmp_path, "method.k=4", "objectives=[latent_mse]")
    assert done.returncode == 1 and "name some of parameters, macs" in done.stderr


@pytest.mark.exhaustive
def test_failures_are_told_although_the_report_cannot_be_written(tmp_path):
    overrides = ["method.k=13,4"]
    assert sweep(tmp_path, *overrides).returncode == 1
    (folder,) = tmp_path.glob("sweeps/*")
    shutil.rmtree(folder / "report")
    (folder / "report").touch()
    done = sweep(tmp_path, *overrides)
    assert done.returncode == 1 and "1 of 2 jobs are done" in done.stdout
    told = done.stderr.splitlines()
    assert told[-3].startswith("failed: #0: RuntimeError: out of luck") and told[-1].startswith("error: File exists: ")
    assert "Warning" not in done.stderr and "Traceback" not in done.stderr


def test_a_sweep_that_cannot_be_recorded_does_not_begin(tmp_path):
    (tmp_path / "sweeps").touch()
    done = sweep(tmp_path, "method.k=4,8")
    assert done.returncode == 2 and not rows(tmp_path)
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ")


@pytest.mark.exhaustive
def test_records_outlive_a_killed_rerun(tmp_path):
    (tmp_path / "go").touch()
    overrides = ["method.k=4,21,8"]
    assert sweep(tmp_path, *overrides).returncode == 0
    (folder,) = tmp_path.glob("sweeps/*")
    assert json.loads((folder / "sweep.json").read_text())["jobs"] == 3
    (tmp_path / "go").unlink()
    shutil.rmtree(rows(tmp_path)[21].parent)
    first = folder / "jobs" / "000000.json"
    before = first.read_text()
    running = started(tmp_path, *overrides)
    wait_until(lambda: first.read_text() != before, running)
    running.kill()
    assert len(list((folder / "jobs").iterdir())) == 3
    assert json.loads((folder / "sweep.json").read_text())["jobs"] == 3
    (tmp_path / "go").touch()
    (folder / "jobs" / "000007.json").write_text(before)  # of a run that was asked for more
    assert sweep(tmp_path, *overrides).returncode == 0
    assert sorted(path.stem for path in (folder / "jobs").iterdir()) == ["000000", "000001", "000002"]


@pytest.mark.exhaustive
def test_two_sweeps_share_a_job_and_the_same_sweep_does_not_run_twice(tmp_path):
    first = started(tmp_path, "method.k=21,4")
    wait_until(lambda: list(tmp_path.glob("t2i/*/*/.lock")), first)
    second = started(tmp_path, "method.k=21,5")
    wait_until(lambda: "waiting for another process" in second.told("stderr"), second)
    same = sweep(tmp_path, "method.k=21,4")
    assert same.returncode == 2 and len(same.stderr.splitlines()) == 1 and "is running already" in same.stderr
    alone = sweep(tmp_path, "method.k=21", alone=True)
    assert alone.returncode == 2 and "Another process is writing" in alone.stderr
    (tmp_path / "go").touch()
    for running in (first, second):
        done = running.wait(120)
        assert done.returncode == 0 and "2 of 2 jobs are done" in done.stdout, done.stderr
    assert set(rows(tmp_path)) == {21, 4, 5}
