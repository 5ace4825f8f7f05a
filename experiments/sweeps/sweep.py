"""A sweep as a whole: its name, how each of its jobs ended, and what is said and drawn at its end.

<outputs>/sweeps/<name>/ holds sweep.json (what was asked, and how many jobs it came to), jobs/<number>.json (folder, command
and end of each job), report/, and what an optimising sweeper found.
"""

import functools
import hashlib
import json
import math
import os
import re
import shlex
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from common.errors import InputError
from common.runtime.collectives import all_failed, reports_the_end
from common.runtime.files import write_atomically, write_json, write_text
from common.runtime.locks import held
from common.runtime.processes import is_first
from common.runtime.progress import clock_time
from common.runtime.strict_json import read_json
from common.shown_text import spelt_out
from experiments.shared.command_line import ending, error_line
from experiments.shared.job_id import command_of, register_job_folder

VARIABLE = "BONSAI_SWEEP"  # tells a job, in whatever process, the folder of its sweep
RUN_VARIABLE = "BONSAI_SWEEP_RUN"  # and which run of it this is
ERROR_FILE = "error.txt"
UNDER_WAY = ("asked", "began")  # of sweep.json, while its jobs run: how many, and since when
FOUND = 3.0  # seconds: a job that took less was done already
OPTIMIZED = "optimization_results.yaml"  # of Optuna and its like, below outputs, where the next study overwrites it


def sweep_name(config: DictConfig) -> str:
    """Names a sweep by what it was asked to do, so that the same command goes on in the same folder."""
    overrides = [word for word in config.hydra.overrides.task if not word.startswith("outputs=")]
    params = OmegaConf.to_container(config.hydra.sweeper, resolve=True).get("params") or {}
    asked = [*overrides, *(f"{key}={value}" for key, value in params.items())]
    told = next((word for word in overrides if word.startswith("experiment=")), " ".join(asked))
    words = re.sub(r"[^A-Za-z0-9.]+", "-", told.removeprefix("experiment=")).strip("-")[:40]
    return f"{words}-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:8]}"


def sweep_folder() -> Path | None:
    """The folder of the sweep that this job belongs to; None for a job that was started alone."""
    name = HydraConfig.get().job.env_set.get(VARIABLE)
    return None if name is None else Path(name)


def sweep_job(job: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """`job` with its end recorded where it is one of a sweep: an error is told and kept, and the other jobs go on."""

    @functools.wraps(job)
    def run(cfg: DictConfig) -> Any:
        sweep = sweep_folder()
        hydra_config = HydraConfig.get()
        if cfg.dry_run:
            return job(cfg)
        if sweep is None:
            swept = hydra_config.sweeper.get("params") or {}
            if swept and is_first():
                print(f"one job alone; with -m all jobs over {', '.join(swept)} run", file=sys.stderr)
            return job(cfg)
        folder = Path(hydra_config.runtime.output_dir)
        record = {
            "run": hydra_config.job.env_set[RUN_VARIABLE],
            "folder": os.path.relpath(folder, cfg.outputs),
            "command": command_of(hydra_config),
        }
        value, message, started = None, None, time.time()
        try:
            value = job(cfg)
            (folder / ERROR_FILE).unlink(missing_ok=True)
        except Exception as error:
            message = error_line(error)
            spoken = reports_the_end(hydra_config.job.num)
            if not all_failed(hydra_config.job.num):  # the others wait for this process: all must end
                if spoken:
                    print(f"error: {message}", file=sys.stderr, flush=True)
                sys.exit(2)
            if spoken:
                write_text(folder / ERROR_FILE, f"{record['command']}\n\n{traceback.format_exc()}")
                print(f"error: {message} (the sweep goes on; {folder / ERROR_FILE})", file=sys.stderr, flush=True)
        if is_first():
            record |= {"error": message, "seconds": round(time.time() - started, 1)}
            write_json(sweep / "jobs" / f"{hydra_config.job.num:06d}.json", record)
            if told := time_left(read_sweep(sweep), list(read_records(sweep).values()), record["run"], time.time()):
                print(told, file=sys.stderr, flush=True)
        return value

    return run


def time_left(sweep: Mapping[str, Any], records: Sequence[Mapping[str, Any]], run: str, now: float) -> str:
    """How far a sweep is and about how long it will take; "" where the number of its jobs is not known, or all are done.

    records: of its jobs, those of other runs among them. Jobs that were there already took no time, and do not count.
    """
    asked, began = sweep.get("asked"), sweep.get("began")
    own = [record["seconds"] for record in records if record.get("run") == run and "seconds" in record]
    if asked is None or began is None or len(own) >= asked:
        return ""
    worked = [seconds for seconds in own if seconds > FOUND]
    told = f"sweep: {len(own)} of {asked} jobs done"
    if not worked:
        return told
    at_once = max(1.0, sum(worked) / max(1.0, now - began))  # jobs, by launchers that run several
    seconds = sum(worked) / len(worked) * (asked - len(own)) / at_once
    return f"{told}, {clock_time(sum(worked) / len(worked))} each, about {clock_time(seconds)} left"


def number_of_jobs(config: DictConfig) -> int | None:
    """Of a sweep by Hydra's own sweeper; None where another one decides."""
    from experiments.shared.settings_check import sweep_overrides

    swept = sweep_overrides(config)
    return None if swept is None else math.prod(sum(1 for _ in each.sweep_iterator()) for each in swept)


class SweepEnd(Callback):
    """Starts the record of a sweep, hands it to the jobs, and ends with summary and report; exit code 1 if a job failed."""

    def __getstate__(self) -> dict[str, Any]:
        """What a worker process needs; the lock stays with the process that holds it."""
        return {name: value for name, value in self.__dict__.items() if name != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In a launcher's worker process, where run.py is not executed again, this object is the first to arrive."""
        self.__dict__.update(state)
        register_job_folder()

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        with ending(2):
            self.start(config)

    def on_job_end(self, config: DictConfig, job_return: Any, **_: Any) -> None:
        """Of a dry run: sums its GPU hours, where the jobs run in this process."""
        if config.dry_run and job_return.status is JobStatus.COMPLETED:
            self.hours = [*getattr(self, "hours", []), job_return.return_value]

    def start(self, config: DictConfig) -> None:
        """Writes sweep.json; the records of an earlier run stay until this one has its own.

        InputError when the same sweep is running, and for a dry run whose jobs are chosen by their results.
        """
        if config.dry_run:
            if "direction" in config.hydra.sweeper:
                raise InputError("dry_run=true has no results for a sweeper that optimises; give one of its jobs alone.")
            return
        self.folder = Path(config.outputs).absolute() / "sweeps" / sweep_name(config)
        self.run = uuid.uuid4().hex[:8]
        if is_first():
            self.begin(config)
        with open_dict(config):
            for name, value in ((VARIABLE, self.folder), (RUN_VARIABLE, self.run)):
                config.hydra.overrides.hydra.append(f"+hydra.job.env_set.{name}='{value}'")

    def begin(self, config: DictConfig) -> None:
        """What the first of the processes does that sweep together."""
        # never released by hand: the end of the process does that, be it a kill
        self.lock = held(self.folder / ".lock", f"This sweep is running already, in another process ({self.folder}).")
        read_records(self.folder)  # a damaged one is told now, and not after the work
        self.optimized = modified_at(Path(config.hydra.sweep.dir) / OPTIMIZED)
        asked = [*config.hydra.overrides.hydra, *config.hydra.overrides.task]
        command = shlex.join(["python", "run.py", "-m", *(word for word in asked if word != "hydra.mode=MULTIRUN")])
        table = None if config.table is None else OmegaConf.to_container(config.table, resolve=True)
        choices = config.hydra.runtime.choices
        about = {"command": command, "experiment": choices.get("experiment"), "task": choices.get("task"), "table": table}
        about |= {"jobs": read_sweep(self.folder).get("jobs"), "asked": number_of_jobs(config), "began": time.time()}
        write_json(self.folder / "sweep.json", about)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        if is_first():
            with ending(1):
                self.end(config)

    def end(self, config: DictConfig) -> None:
        """Tells the failures before anything else can fail, then brings the folder up to date and writes the report.

        Of a dry run: tells the hours of all jobs.
        """
        if config.dry_run:
            if hours := getattr(self, "hours", []):
                print(f"\n{len(hours)} jobs: {sum(hours):,.1f} GPU h, as if each scored and sampled its teacher for itself")
            return
        records = {number: record for number, record in read_records(self.folder).items() if record.get("run") == self.run}
        failed = {number: record for number, record in records.items() if record["error"] is not None}
        print(f"\n{len(records) - len(failed)} of {len(records)} jobs are done.", flush=True)
        for number, record in failed.items():
            where = Path(config.outputs) / record["folder"] / ERROR_FILE
            print(spelt_out(f"failed: #{number}: {record['error']} ({where})"), file=sys.stderr)
        if failed:
            print("the same command runs only what is missing", file=sys.stderr)
        self.clean_up(records, Path(config.hydra.sweep.dir) / OPTIMIZED)
        done = {Path(config.outputs) / record["folder"]: None for record in records.values() if record["error"] is None}
        if done:
            print(f"report: {self.report(list(done), failed)}")
        if failed:
            sys.exit(1)

    def clean_up(self, records: dict[int, dict[str, Any]], optimized: Path) -> None:
        """Counts the jobs, deletes records of earlier runs, and keeps what this sweep's optimiser has written."""
        kept = {name: value for name, value in read_sweep(self.folder).items() if name not in UNDER_WAY}
        write_json(self.folder / "sweep.json", {**kept, "jobs": len(records)})
        for path in (self.folder / "jobs").glob("*.json"):
            if int(path.stem) not in records:
                path.unlink()
        if modified_at(optimized) != self.optimized:
            write_atomically(self.folder / OPTIMIZED, optimized.read_bytes())

    def report(self, folders: list[Path], failed: dict[int, dict[str, Any]]) -> Path:
        """Writes the page about the jobs in `folders`, with a line for each that failed; prints a paper's table beside ours."""
        from experiments.reporting.page import write_report
        from experiments.reporting.paper_table import print_paper_table
        from experiments.reporting.rows import read_rows

        sweep, rows = read_sweep(self.folder), read_rows(folders)
        notes = [sweep["command"], *(f"failed: {record['command']}: {record['error']}" for record in failed.values())]
        table = sweep["table"]
        try:
            if table is not None:
                print_paper_table(rows, table)
        except InputError as error:  # a sweep over more than the table's lines tell apart
            print(f"no table beside the published one: {error}", file=sys.stderr)
            table = None
        return write_report(rows, self.folder / "report", f"sweep {self.folder.name}", notes, table)


def modified_at(path: Path) -> int | None:
    """When the file was written; None where there is none."""
    return path.stat().st_mtime_ns if path.is_file() else None


def read_sweep(folder: Path) -> dict[str, Any]:
    """What the sweep in `folder` was asked for; empty where it has not begun."""
    path = folder / "sweep.json"
    return read_json(path, "delete it, and the same command writes it anew") if path.is_file() else {}


def read_records(folder: Path) -> dict[int, dict[str, Any]]:
    """How the jobs of the sweep in `folder` ended, by number."""
    remedy, keys = "delete it, and the same command writes it anew", ("folder", "command", "error")
    return {int(path.stem): read_json(path, remedy, keys) for path in sorted((folder / "jobs").glob("*.json"))}
