"""W&B runs: what is written offline is read back, a run ends as its job ends, a server that is silent stops nothing."""

import json
import os
import socket
import struct
import time
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from common.pruning.plan import Edit, Plan
from common.runtime.files import ROOT
from common.runtime.signals import Ended
from experiments.shared.job import Job
from experiments.shared.job_id import register_job_folder
from experiments.sweeps.sweep import VARIABLE
from experiments.sweeps.wandb_run import STEP, Tracker, log_result, log_student, loggers, pick_mode, tracking
from tests.commands import run
from tests.experiments.test_collect import job

pytestmark = pytest.mark.slow


@pytest.fixture
def composed(monkeypatch, tmp_path):
    """Composes a job's configuration as Hydra does for a job of a sweep called "a_sweep"."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))  # no login of whoever runs the tests

    def make(*overrides):
        register_job_folder()
        further = [f"+hydra.job.env_set.{VARIABLE}='{tmp_path}/a_sweep'", "hydra.runtime.output_dir=x", "hydra.job.num=0"]
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            cfg = compose("config", overrides=[*overrides, *further], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        return cfg

    yield make
    HydraConfig.instance().cfg = None


def records_of(path):
    """The records of a .wandb file so far: LevelDB's log format after a header of 7 bytes, in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    data, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        if position + 7 + length > len(data):
            return  # W&B is still writing this one
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def values(items):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def read_back(folder):
    """What an offline run has written, as soon as its end is: history, summary, the run, and its exit code."""
    (path,) = Path(folder).glob("wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 60
    while not any(record.WhichOneof("record_type") == "exit" for record in records_of(path)):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    found = {"history": [], "summary": {}, "exit": None, "run": None, "artifacts": []}
    for record in records_of(path):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            found["history"].append(values(record.history.item))
        elif kind == "summary":
            found["summary"] |= values(record.summary.update)
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
        elif kind == "run":
            found["run"] = record.run
        elif kind == "artifact":
            found["artifacts"].append(record.artifact.name)
        elif kind == "request" and record.request.HasField("log_artifact"):
            found["artifacts"].append(record.request.log_artifact.artifact.name)
    return found


def test_what_a_job_writes_offline_is_read_back(composed, tmp_path):
    cfg = composed("method.k=5")
    row = job(tmp_path / "row")
    row |= {"by_steps": {"50": {who: {"fd_effnet": 7.0} for who in ("teacher", "pruned", "distilled")}}}
    plan = Plan("ld_pruner", (Edit("mid_block", "zero", score=0.5),), "teacher", scores={"mid_block": 0.5, "other": 2.0})
    images = {who: torch.zeros(2, 3, 4, 4, dtype=torch.uint8) for who in ("teacher", "distilled")}
    folder = tmp_path / "t2i" / "ld_pruner" / "abcd"
    (folder / "student").mkdir(parents=True)
    (folder / "student" / "weights").write_text("x")
    with tracking(Job(cfg, folder)) as tracker:
        (logger,) = loggers(tracker)
        logger.log_metrics({"loss": 3.0, "loss/task": 1.0}, 10)
        log_result(tracker.run, row, plan, images, ["a", "b"])
        log_student(tracker.run, folder / "student")
    found = read_back(folder)
    assert found["exit"] == 0 and found["run"].run_group == "a_sweep" and found["run"].job_type == "ld_pruner"
    config = {item.key or "/".join(item.nested_key): item.value_json for item in found["run"].config.update}
    assert json.loads(config["method"])["k"] == 5
    losses = next(entry for entry in found["history"] if "loss" in entry)
    assert losses["loss/task"] == 1.0 and losses[STEP] == 10
    steps = {entry["sampling/steps"]: entry for entry in found["history"] if "sampling/steps" in entry}
    assert steps[50]["sampling/student/fd_effnet"] == 7.0 and steps[20]["sampling/student/fd_effnet"] == 1600.0
    assert found["summary"]["student/fd_effnet"] == 1600.0 and found["summary"]["teacher/fd_effnet"] == 1500.0
    tables = next(entry for entry in found["history"] if "scores/path" in entry)
    (written,) = folder.glob(f"wandb/offline-run-*/files/{tables['scores/path']}")
    assert json.loads(written.read_text())["data"] == [["mid_block", 0.5, True], ["other", 2.0, False]]
    assert tables["samples/nrows"] == 2 and tables["plan/nrows"] == 1
    assert any(name.startswith("student-") for name in found["artifacts"])


def test_a_run_ends_as_its_job_does(composed, tmp_path):
    with pytest.raises(RuntimeError), tracking(Job(composed(), tmp_path)):
        raise RuntimeError("the job fails")
    assert read_back(tmp_path)["exit"] == 1
    for nothing in ("logging=none", "wandb.mode=disabled"):
        with tracking(Job(composed(nothing), tmp_path)) as tracker:
            assert tracker is None and loggers(tracker) == []


SILENT_SERVER = """
import sys
from pathlib import Path
from omegaconf import OmegaConf
from experiments.shared.job import Job
from experiments.sweeps import wandb_run as tracking
tracking.sweep_folder = lambda: None
cfg = OmegaConf.load("conf/logging/wandb.yaml")
cfg = OmegaConf.create({"task": {"name": "t2i"}, "outputs": "x", "wandb": {**cfg, "timeout": 3}})
for name in ("a", "b"):
    folder = Path(sys.argv[1]) / name
    folder.mkdir()
    with tracking.tracking(Job(cfg, folder)) as tracker:
        if tracker is not None:
            tracker.attempt(lambda run: run.log({"loss": 1.0}))
"""


@pytest.fixture
def two_jobs(tmp_path, monkeypatch):
    """Runs two jobs that track in one process, under the variables; what they told."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    nothing_outside = {"WANDB_BASE_URL": "http://127.0.0.1:9", "NETRC": str(tmp_path / "netrc")}  # whatever a case says
    return lambda **variables: run("-c", SILENT_SERVER, str(tmp_path), **{**nothing_outside, **variables})


KEY = "a" * 40


@pytest.mark.parametrize(
    ("variables", "told"),
    {
        "no network": ({"WANDB_API_KEY": KEY, "WANDB_MODE": "online"}, "W&B does not answer"),
        "a key, no network": ({"WANDB_API_KEY": KEY}, "W&B lets nobody in"),
        "a short key": ({"WANDB_API_KEY": "abc"}, "W&B lets nobody in"),
        "no number": ({"WANDB_INIT_TIMEOUT": "soon"}, "W&B lets nobody in"),
        "an unknown mode": ({"WANDB_MODE": "sometimes"}, "WANDB_MODE=sometimes is none of online, offline, disabled"),
    }.values(),
)
@pytest.mark.exhaustive
def test_a_server_that_does_not_answer_and_odd_variables_stop_nothing_and_are_told_once(tmp_path, two_jobs, variables, told):
    done = two_jobs(**variables)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and told in lines[0], done.stderr
    assert [read_back(tmp_path / name)["exit"] for name in ("a", "b")] == [0, 0]


@pytest.mark.exhaustive
def test_a_server_that_hangs_holds_nobody_up(tmp_path, two_jobs):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and says nothing
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = two_jobs(WANDB_API_KEY=KEY, WANDB_BASE_URL=address, WANDB_MODE="online")
    assert done.returncode == 0 and len(done.stderr.splitlines()) == 1, done.stderr
    assert [read_back(tmp_path / name)["exit"] for name in ("a", "b")] == [0, 0]


def test_disabled_by_the_environment(tmp_path, two_jobs):
    done = two_jobs(WANDB_DISABLED="true", WANDB_API_KEY="abc")
    assert done.returncode == 0 and not done.stderr and not list(tmp_path.glob("*/wandb"))


class Broken:
    """A run whose every call fails."""

    id = "x"

    def __getattr__(self, name):
        raise ConnectionError(f"{name}: the service\nhas died")


def test_what_fails_on_the_way_is_told_once_and_costs_nothing(composed, monkeypatch, tmp_path, capsys):
    from experiments.sweeps import wandb_run as module

    monkeypatch.setattr(module, "start_run", lambda job, settings: Broken())
    with tracking(Job(composed(), tmp_path)) as tracker:
        (logger,) = loggers(tracker)
        logger.log_metrics({"loss": 3.0}, 10)
        tracker.attempt(lambda run: log_result(run, job(tmp_path / "row"), Plan("x", (), "teacher"), {}, []))
        tracker.attempt(lambda run: log_student(run, tmp_path))
    told = [line for line in capsys.readouterr().err.splitlines() if "wandb:" not in line]  # start_run keeps W&B silent
    assert told == ["W&B fails (log: the service has died); the job goes on without"]


def test_a_signal_in_a_call_of_wandb_is_no_failure_of_it():
    def end(run):
        raise Ended(15)

    with pytest.raises(Ended):
        Tracker(Broken()).attempt(end)


def test_the_environment_counts_and_the_command_line_wins(composed, monkeypatch):
    assert composed().wandb.project == "bonsai" and composed().wandb.entity is None and composed().wandb.dir is None
    for name in ("PROJECT", "ENTITY", "DIR"):
        monkeypatch.setenv(f"WANDB_{name}", "mine")
    assert [composed().wandb[name] for name in ("project", "entity", "dir")] == ["mine"] * 3
    assert composed("wandb.project=given").wandb.project == "given"


def test_offline_unless_there_is_a_key(composed, monkeypatch):
    composed()
    assert pick_mode("auto", 3) == "offline" and pick_mode("online", 3) == "online"
    for older, mode in {"dryrun": "offline", "run": "online"}.items():
        monkeypatch.setenv("WANDB_MODE", older)
        assert pick_mode("auto", 3) == mode
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert pick_mode("auto", 3) == "disabled" and pick_mode("offline", 3) == "offline"
