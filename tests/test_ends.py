"""Signals that end a command: exit code, one line, and the same command goes on."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.commands import ROOT, run, start
from tests.small_jobs import job
from tests.test_two_processes import start_together

pytestmark = pytest.mark.slow

LINES = {
    signal.SIGINT: "interrupted; the same command goes on from here",
    signal.SIGTERM: "terminated; the same command goes on from here",
    signal.SIGHUP: "hung up; the same command goes on from here",
}


def usual_handlers():
    """A shell starts a command in the background with interrupts ignored, and so would be what it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def end(arguments, number, seen, limit=240, **environment):
    """The command, sent the signal as soon as seen(what it has told so far)."""
    running = start(*arguments, before=usual_handlers, **environment)
    deadline = time.monotonic() + limit
    while not seen(running.told("stderr")):
        assert running.process.is_alive() and time.monotonic() < deadline, running.told("stderr")
        time.sleep(0.01)
    os.kill(running.process.pid, number)
    return running.wait(120)


def assert_told(done, number):
    """The exit code, and a single line beside those of the progress."""
    assert done.returncode == 128 + number, done.stderr
    assert done.stderr.splitlines()[-1] == LINES[number] and done.stderr.count("goes on from here") == 1
    assert not any(word in done.stderr for word in ("Traceback", "error", "Warning", "\r", "\x1b"))


@pytest.mark.parametrize("number", LINES)
def test_a_signal_ends_distillation_with_its_code_and_a_line(tiny_teacher_folder, tmp_path, number):
    arguments = job("t2i", tiny_teacher_folder, tmp_path, "distill.steps=5000", method="random_layers")
    done = end(arguments, number, lambda told: any(tmp_path.glob("t2i/*/*/distill/step=[1-9]*.ckpt")))
    assert_told(done, number)
    assert "stage: distilling" in done.stderr and "distilling: 0 of 5000" in done.stderr
    assert not list(tmp_path.rglob("result.json")) and not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.exhaustive
def test_a_sweep_ends_with_its_record_and_goes_on(tmp_path, number):
    sweep = ["-m", "tests.pretend_run", "-m", f"outputs={tmp_path}", "distill=none", "method.k=4,21,8"]
    done = end(sweep, number, lambda told: any(tmp_path.glob("sweeps/*/jobs/000000.json")))
    assert_told(done, number)
    (record,) = tmp_path.glob("sweeps/*/jobs/*.json")
    assert json.loads(record.read_text())["error"] is None and not list(tmp_path.rglob("error.txt"))
    (tmp_path / "go").touch()
    done = run(*sweep)
    assert done.returncode == 0 and "3 of 3 jobs are done" in done.stdout and rows_of(tmp_path) == {4, 8, 21}


def rows_of(outputs):
    return {json.loads(path.read_text())["settings"]["method"]["k"] for path in Path(outputs).glob("t2i/*/*/result.json")}


@pytest.mark.exhaustive
def test_processes_of_one_job_end_together_with_one_line(tiny_teacher_folder, tmp_path):
    arguments = job("t2i", tiny_teacher_folder, tmp_path, "distill.steps=5000", method="random_layers")
    running = start_together(*arguments)
    deadline = time.monotonic() + 240
    while not any(tmp_path.glob("t2i/*/*/distill/step=[1-9]*.ckpt")):
        assert all(each.process.is_alive() for each in running) and time.monotonic() < deadline
        time.sleep(0.01)
    for each in running:
        os.kill(each.process.pid, signal.SIGTERM)
    finished = [each.wait(100) for each in running]
    assert [each.returncode for each in finished] == [143, 143], [each.stderr for each in finished]
    told = "".join(each.stderr for each in finished)
    assert told.count(LINES[signal.SIGTERM]) == 1 and "Traceback" not in told and "error" not in told


def script(text):
    """What Python prints that runs `text`: in a process of its own, which a signal may end."""
    text = "import os, signal, time\nfrom common.runtime.signals import Ended, raised_signals\n" + textwrap.dedent(text)
    done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_what_ignores_a_hang_up_goes_on_ignoring_it():
    """nohup python run.py ..."""
    found = script("""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            with raised_signals():
                os.kill(os.getpid(), signal.SIGHUP)
                print("goes on")
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1)
        except Ended as ended:
            print(ended, signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
    """)
    assert found == ["goes", "on", "terminated", "True"]


def test_signals_that_somebody_handles_stay_with_them():
    """submitit requeues a job that Slurm is about to end."""
    found = script("""
        signal.signal(signal.SIGTERM, lambda *_: print("TERM", flush=True))
        with raised_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
    """)
    assert found == ["TERM"]
