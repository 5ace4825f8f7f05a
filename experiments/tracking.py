"""The Weights & Biases run of a job."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from common.errors import InputError, first_line
from common.plans import Plan
from common.processes import is_first
from experiments.jobs import job_settings
from experiments.rows import Row, flat, metric_names, student
from experiments.sweeps import sweep_folder

STEP = "trainer/global_step"
SAMPLES = 8  # in the table


@contextmanager
def tracking(cfg: DictConfig, folder: Path) -> Iterator[Any]:
    """The run of the job in `folder`, in the group of its sweep, ended as the job ends.

    None with logging=none, and in all but the first of the processes of a job.
    """
    if cfg.wandb is None or not is_first():
        yield None
        return
    run = start_run(cfg, folder)
    try:
        yield run
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()


def pick_mode(mode: str) -> str:
    """cfg.wandb.mode with "auto" resolved: see conf/logging/wandb.yaml."""
    import wandb

    if mode not in ("auto", "online", "offline"):
        raise InputError(f"wandb.mode={mode!r} is none of auto, online, offline.")
    if mode != "auto":
        return mode
    return os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False) else "offline")


def start_run(cfg: DictConfig, folder: Path) -> Any:
    """A run named after the job's folder; offline, which is said once in a process, where the server does not answer."""
    import wandb

    sweep = sweep_folder()
    method = folder.parent.name
    about = {
        "project": cfg.wandb.project,
        "entity": cfg.wandb.entity,
        "dir": folder,
        "id": f"{cfg.task.name}-{method}-{folder.name}",
        "resume": "allow",
        "name": f"{method} {folder.name}",
        "group": None if sweep is None else sweep.name,
        "job_type": method,
        "config": job_settings(cfg),
    }
    settings = {"silent": True, "console": "off", "init_timeout": cfg.wandb.timeout}
    mode = pick_mode(cfg.wandb.mode)
    try:
        run = wandb.init(**about, mode=mode, settings=wandb.Settings(**settings))
    except wandb.errors.Error as error:
        if mode != "online":
            raise
        os.environ["WANDB_MODE"] = "offline"
        print(
            f"W&B does not answer ({first_line(error)}); going on offline, to send later: wandb sync {folder}/wandb/*",
            file=sys.stderr,
        )
        about |= {"id": None, "resume": None}  # the id stays taken by the run that could not begin
        run = wandb.init(**about, mode="offline", settings=wandb.Settings(**settings))
    run.define_metric(STEP)
    run.define_metric("sampling/steps")
    run.define_metric("sampling/*", step_metric="sampling/steps")
    for pattern in ("loss", "loss/*", "share/*", "feature/*", "feature_share/*", "distance/*"):
        run.define_metric(pattern, step_metric=STEP)
    return run


def loggers(run: Any) -> list[Any]:
    """What Lightning logs a training to besides its CSV file: the losses by term."""
    if run is None:
        return []
    from lightning.pytorch.loggers import WandbLogger

    return [WandbLogger(experiment=run)]


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
