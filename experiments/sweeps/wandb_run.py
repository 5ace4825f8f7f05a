"""The Weights & Biases run of a job, which never costs the job anything."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from common.pruning.plan import Plan
from common.runtime.processes import is_first
from experiments.reporting.rows import flat, metric_names, student
from experiments.shared.job import Job
from experiments.shared.row import Row
from experiments.shared.settings import WeightsAndBiases
from experiments.sweeps.sweep import sweep_folder

STEP = "trainer/global_step"
SAMPLES = 8  # in the table
LONGEST = 160  # characters of what W&B says of an error
MODES = ("online", "offline", "disabled")
OLDER_MODES = {"dryrun": "offline", "run": "online"}
VARIABLES = {"name": "WANDB_NAME", "group": "WANDB_RUN_GROUP", "job_type": "WANDB_JOB_TYPE"}  # which W&B reads by itself


class Tracker:
    """A job's W&B run, which costs the job nothing: what fails in it is told in one line, once, and the job goes on."""

    def __init__(self, run: Any):
        self.run, self.told = run, False

    def attempt(self, action: Callable[[Any], Any]) -> None:
        """action(run), with a failure of whatever kind told and left behind."""
        try:
            action(self.run)
        except Exception as error:
            if not self.told:
                tell(f"W&B fails ({in_short(error)}); the job goes on without")
            self.told = True


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def in_short(error: BaseException) -> str:
    """What W&B says of an error, in a part of a line."""
    told = " ".join(str(error).split()) or type(error).__name__
    return told if len(told) <= LONGEST else f"{told[:LONGEST]} ..."


@contextmanager
def tracking(job: Job) -> Iterator[Tracker | None]:
    """The run of the job, in the group of its sweep, ended as the job ends.

    None with logging=none or a mode of "disabled", where no run can begin, and in all but the first of the processes of a job.
    """
    run = None if job.settings.wandb is None or not is_first() else start_run(job, job.settings.wandb)
    if run is None:
        yield None
        return
    tracker = Tracker(run)
    try:
        yield tracker
    except BaseException as error:
        code = getattr(error, "exit_code", 1)
        tracker.attempt(lambda run: run.finish(exit_code=code))
        raise
    tracker.attempt(lambda run: run.finish())


def pick_mode(mode: str, timeout: float) -> str:
    """wandb.mode with "auto" resolved: see conf/logging/wandb.yaml."""
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on"):
        return "disabled"
    given = os.environ.get("WANDB_MODE", "")
    if given in (*MODES, *OLDER_MODES):
        return OLDER_MODES.get(given, given)
    if given:
        os.environ["WANDB_MODE"] = "offline"  # said once in a process
        tell(f"WANDB_MODE={given} is none of {', '.join(MODES)}: W&B runs are kept offline")
        return "offline"
    try:
        import wandb

        return "online" if wandb.login(prompt=False, timeout=timeout) else "offline"
    except Exception as error:  # of a key, the environment, the connection
        os.environ["WANDB_MODE"] = "offline"
        tell(f"W&B lets nobody in ({in_short(error)}); its runs are kept offline")
        return "offline"


def start_run(job: Job, settings: WeightsAndBiases) -> Any:
    """A run named after the job's folder, or None; offline where the server does not answer."""
    os.environ.setdefault("WANDB_SILENT", "true")
    mode = pick_mode(settings.mode, settings.timeout)
    if mode == "disabled":
        return None
    place = Path(settings.dir or job.folder)
    for attempt in dict.fromkeys((mode, "offline")):
        try:
            return init_run(job, settings, place, attempt, again=attempt != mode)
        except Exception as error:
            if attempt == "online":
                os.environ["WANDB_MODE"] = "offline"
                tell(f"W&B does not answer ({in_short(error)}); going on offline, to send later: wandb sync {place}/wandb/*")
            else:
                tell(f"W&B cannot begin a run offline ({in_short(error)}); the job goes on without")
    return None


def init_run(job: Job, settings: WeightsAndBiases, place: Path, mode: str, again: bool = False) -> Any:
    """A run in the folder `place`. again: another could not begin, by which the id stays taken."""
    import wandb

    sweep, method, name = sweep_folder(), job.folder.parent.name, job.folder.name
    about = {
        "project": settings.project,
        "entity": settings.entity,
        "dir": place,
        "config": job.described,
        **({} if again else {"id": f"{job.settings.task.name}-{method}-{name}", "resume": "allow"}),
    }
    own = {"name": f"{method} {name}", "group": None if sweep is None else sweep.name, "job_type": method}
    about |= {name: value for name, value in own.items() if not os.environ.get(VARIABLES[name])}
    place.mkdir(parents=True, exist_ok=True)
    quiet = {"silent": True, "console": "off", "init_timeout": settings.timeout, "finish_timeout": settings.timeout}
    known = {name: value for name, value in quiet.items() if name in wandb.Settings.model_fields}
    run = wandb.init(**about, mode=mode, settings=wandb.Settings(**known))
    run.define_metric(STEP)
    run.define_metric("sampling/steps")
    run.define_metric("sampling/*", step_metric="sampling/steps")
    for pattern in ("loss", "loss/*", "share/*", "feature/*", "feature_share/*", "distance/*"):
        run.define_metric(pattern, step_metric=STEP)
    return run


def loggers(tracker: Tracker | None) -> list[Any]:
    """What Lightning logs a training to besides its CSV file: the losses by term."""
    if tracker is None:
        return []
    from experiments.sweeps.loss_logger import LossLogger

    return [LossLogger(tracker, STEP)]


def log_result(run: Any, row: Row, plan: Plan, images: dict[str, torch.Tensor], captions: list[str]) -> None:
    """Figures over sampling steps and as a summary, and tables of samples, scores and the plan.

    Figures are called "<model>/<figure>"; what the job ended with is the model "student".
    """
    import wandb

    def named(models: dict[str, Any]) -> dict[str, Any]:
        return {"student" if who == student(row) else who: figures for who, figures in models.items()}

    for who, figures in named(row["models"]).items():
        run.summary.update({f"{who}/{name}": value for name, value in flat(figures).items()})
    by_steps = {row["protocol"]["steps"]: row["models"], **{int(steps): models for steps, models in row["by_steps"].items()}}
    for steps, models in sorted(by_steps.items()):
        values = {
            f"sampling/{who}/{name}": figures[name]
            for who, figures in named(models).items()
            for name in metric_names([row])
            if name in figures
        }
        run.log({"sampling/steps": steps, **values})
    shown = zip(captions[:SAMPLES], *(drawn[:SAMPLES] for drawn in images.values()), strict=True)
    samples = [[caption, *(wandb.Image(image.permute(1, 2, 0).numpy()) for image in drawn)] for caption, *drawn in shown]
    edited = {edit.site for edit in plan.edits}
    scores = [[site, score, site in edited] for site, score in plan.scores.items()]
    edits = [[edit.site, edit.operation, edit.score] for edit in plan.edits]
    run.log(
        {
            "samples": wandb.Table(["caption", *images], samples),
            "scores": wandb.Table(["site", "score", "edited"], scores),
            "plan": wandb.Table(["site", "operation", "score"], edits),
        }
    )


def log_student(run: Any, folder: Path) -> None:
    """The student's folder as an artifact, named after the run."""
    import wandb

    artifact = wandb.Artifact(f"student-{run.id}", "model")
    artifact.add_dir(str(folder))
    run.log_artifact(artifact)
