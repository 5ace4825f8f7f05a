"""A sweep as a whole: its name, how each of its jobs ended, and what is said and drawn at its end.

<outputs>/sweeps/<name>/ holds sweep.json (what was asked), jobs/<number>.json (folder, command and end of
each job) and report/.
"""

import functools
import hashlib
import json
import os
import re
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from common.errors import InputError
from common.files import write_json
from experiments.command_line import explain
from experiments.jobs import register_job_folder

VARIABLE = "BONSAI_SWEEP"  # tells a job, in whatever process, the folder of its sweep
ERROR_FILE = "error.txt"


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
        if sweep is None:
            return job(cfg)
        hydra_config = HydraConfig.get()
        folder = Path(hydra_config.runtime.output_dir)
        record = {
            "folder": os.path.relpath(folder, cfg.outputs),
            "command": shlex.join(["python", "run.py", *hydra_config.overrides.task]),
        }
        value, message = None, None
        try:
            value = job(cfg)
            (folder / ERROR_FILE).unlink(missing_ok=True)
        except Exception as error:
            message = explain(error) or f"{type(error).__name__}: {error}"
            (folder / ERROR_FILE).write_text(f"{record['command']}\n\n{traceback.format_exc()}")
            print(f"error: {message} (the sweep goes on; {folder / ERROR_FILE})", file=sys.stderr, flush=True)
        write_json(sweep / "jobs" / f"{hydra_config.job.num:06d}.json", {**record, "error": message})
        return value

    return run


class SweepEnd(Callback):
    """Starts the record of a sweep, hands it to the jobs, and ends with summary and report; exit code 1 if a job failed."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In a launcher's worker process, where run.py is not executed again, this object is the first to arrive."""
        self.__dict__.update(state)
        register_job_folder()

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        self.folder = Path(config.outputs).absolute() / "sweeps" / sweep_name(config)
        shutil.rmtree(self.folder / "jobs", ignore_errors=True)
        asked = [*config.hydra.overrides.hydra, *config.hydra.overrides.task]
        command = shlex.join(["python", "run.py", "-m", *(word for word in asked if word != "hydra.mode=MULTIRUN")])
        table = None if config.table is None else OmegaConf.to_container(config.table, resolve=True)
        choices = config.hydra.runtime.choices
        about = {"command": command, "experiment": choices.get("experiment"), "task": choices.get("task"), "table": table}
        write_json(self.folder / "sweep.json", about)
        with open_dict(config):
            config.hydra.overrides.hydra.append(f"+hydra.job.env_set.{VARIABLE}='{self.folder}'")

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        records = read_records(self.folder)
        failed = {number: record for number, record in records.items() if record["error"] is not None}
        print(f"\n{len(records) - len(failed)} of {len(records)} jobs are done.")
        done = {Path(config.outputs) / record["folder"]: None for record in records.values() if record["error"] is None}
        if done:
            print(f"report: {self.report(list(done), failed)}")
        for number, record in failed.items():
            where = Path(config.outputs) / record["folder"] / ERROR_FILE
            print(f"failed: #{number}: {record['error']} ({where})", file=sys.stderr)
        if failed:
            print("the same command runs only what is missing", file=sys.stderr)
            sys.exit(1)

    def report(self, folders: list[Path], failed: dict[int, dict[str, Any]]) -> Path:
        """Writes the page about the jobs in `folders`, with a line for each that failed; prints a paper's table beside ours."""
        from experiments.paper_table import print_paper_table
        from experiments.report import write_report
        from experiments.rows import read_rows

        sweep, rows = json.loads((self.folder / "sweep.json").read_text()), read_rows(folders)
        notes = [sweep["command"], *(f"failed: {record['command']}: {record['error']}" for record in failed.values())]
        table = sweep["table"]
        try:
            if table is not None:
                print_paper_table(rows, table)
        except InputError as error:  # a sweep over more than the table's lines tell apart
            print(f"no table beside the published one: {error}", file=sys.stderr)
            table = None
        return write_report(rows, self.folder / "report", f"sweep {self.folder.name}", notes, table)


def read_records(folder: Path) -> dict[int, dict[str, Any]]:
    """How the jobs of the sweep in `folder` ended, by number."""
    return {int(path.stem): json.loads(path.read_text()) for path in sorted((folder / "jobs").glob("*.json"))}
