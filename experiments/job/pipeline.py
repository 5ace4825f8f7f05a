"""One job from configuration to result row: plan, prune, distil, measure, show."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from common.errors import InputError, first_line
from common.models.saving import load_student, save_student
from common.runtime.collectives import barrier, join, on_first
from common.runtime.files import write_json
from common.training.fit import drop_checkpoints
from experiments.evaluation.deployment import measure_deployed, not_deployed
from experiments.evaluation.evaluate import evaluate
from experiments.evaluation.layer_effects import tell_dead_layers
from experiments.evaluation.models import Models
from experiments.evaluation.paper_metrics import lacking, measure_into
from experiments.evaluation.real_features import Reference
from experiments.job.job_folder import found_or_made
from experiments.job.planning import make_plans, prune
from experiments.job.preparation import empty_folder_goes, prepare
from experiments.job.result_row import result_row
from experiments.reporting.job_report import print_table
from experiments.reporting.rows import CHOICES, read_row
from experiments.shared.job import Job
from experiments.shared.job_id import command_of
from experiments.shared.out_of_memory import memory_advice
from experiments.shared.row import Row
from experiments.sweeps.wandb_run import loggers, tracking
from experiments.training.train_student import train_student


def run_job(job: Job) -> Row:
    """Runs or finds the job and returns its result row, as written to result.json."""
    with empty_folder_goes(job.folder):
        join(job.device)
    return found_or_made(job.folder, partial(find_row, job), partial(prepare, job), partial(new_row, job))


def find_row(job: Job) -> Row | None:
    """The row of a finished job, which is shown; None where there is none yet.

    What it lacks of the settings' metrics and deployments is measured, and the row written anew.
    """
    path = job.folder / "result.json"
    if not path.is_file():
        return None
    row = read_row(path, "delete it and the job ends anew")
    print(f"This job is done: {path} (delete the folder to run it again).")
    if add_to_row(job, row):
        write_json(path, row)
    print_table(row)
    return row


def new_row(job: Job) -> Row:
    """Runs the job and writes its row; the first of several processes does, with what all have computed."""

    hydra_config = HydraConfig.get()
    made_by = {
        "command": command_of(hydra_config),
        "choices": {name: hydra_config.runtime.choices.get(name) for name in CHOICES},
    }
    with tracking(job) as tracker:
        finish = compute(job, tracker)
        return on_first(lambda: write_row(job.folder, {**finish(), **made_by}))


def write_row(folder: Path, row: Row) -> Row:
    """Writes result.json, and prints the table and where to look."""
    path = folder / "result.json"
    write_json(path, row)
    print_table(row)
    shown = ", ".join(picture.name for picture in sorted(folder.glob("*.png")))
    print(f"\nresult {path}\npictures beside it: {shown}\nstudent {folder / 'student'}")
    return row


def add_to_row(job: Job, row: Row) -> bool:
    """Measures what a finished job's row lacks of the settings' metrics and deployments; whether the row has changed."""
    before = copy.deepcopy(row)
    if not_deployed(job, row):
        with memory_advice("deployment", job.settings):
            measure_deployed(job, row, kept_student(job.teacher, job.folder / "student").to(job.device))
    if job.settings.metrics and lacking(job.settings, row):
        with memory_advice("metrics", job.settings):
            measure_into(job, row, job.teacher.fingerprint())
    return before != row


def kept_student(teacher: Any, folder: Path) -> Any:
    """The student that the job has saved; InputError with the remedy when its folder is damaged."""
    try:
        return load_student(teacher, folder)
    except (InputError, OSError, LookupError, AttributeError, StopIteration) as error:
        told = first_line(error).rstrip(".")
        raise InputError(f"{folder} is damaged ({told}); delete it and the student is trained anew.") from error


def compute(job: Job, tracker: Any) -> Callable[[], Row]:
    """The stages of a job that its processes share; each finds what an interrupted run has left and goes on there.

    tracker: the job's W&B run, or None. Returns what is left for one process to do: measure speeds, draw, put the row together.
    """
    teacher, distill, folder = job.teacher, job.settings.distill, job.folder
    with job.stage("scoring"):
        tell_dead_layers(job)
        plans = make_plans(job)
    models = Models(teacher, prune(job, plans))
    reference = Reference(job, job.settings.evaluation.split)
    trains = bool(distill.steps or ("autoencoder" in plans and distill.autoencoder.steps))
    with job.stage("distilling"):
        if not on_first(lambda: (folder / "student" / "model_index.json").is_file()):
            student = train_student(job, models.pruned, plans, reference, loggers(tracker)) if trains else models.pruned
            on_first(lambda: save_student(teacher, student, folder / "student"))
        on_first(lambda: drop_checkpoints(folder / "distill"))  # of a run that was killed before it came to this, too
        if trains:
            models = replace(models, distilled=kept_student(teacher, folder / "student").to(job.device))
    with job.stage("measuring"):
        metrics, images = evaluate(job, models.by_name(), reference, folder / "samples")
        by_steps = {}
        for steps in job.settings.evaluation.more_steps:
            changed, place = job.with_evaluation(steps=steps), folder / "samples" / f"steps={steps}"
            by_steps[str(steps)], _ = evaluate(changed, models.by_name(), reference, place)
    barrier()  # no other process computes while speeds are measured
    return lambda: result_row(job, tracker, models, plans, images, {"models": metrics, "by_steps": by_steps})
