"""The row of a finished job: costs measured, pictures drawn, everything put together."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
import torch
from torch import nn

from common.audio.spectrogram import write_sounds
from common.diffusion.images import upright
from common.pruning.plan import Plan
from common.runtime.strict_json import read_json
from experiments.evaluation.deployment import measure_deployed
from experiments.evaluation.measure_cost import measure_cost
from experiments.evaluation.models import Models
from experiments.evaluation.paper_metrics import measure_into
from experiments.evaluation.samples import SEEDS
from experiments.job.sparse_student import draw_sparsity, export_sparse, masked_parts
from experiments.reporting.job_report import draw_samples, draw_scores
from experiments.reporting.plan_picture import draw_plan
from experiments.shared.environment import environment
from experiments.shared.job import Job
from experiments.shared.row import Row
from experiments.sweeps.wandb_run import log_result, log_student
from experiments.training.distance_curve import read_curve
from experiments.training.train_student import REPORT


def reached_by(settings: Mapping[str, Any]) -> dict[str, float]:
    """What a plan reached of what was wanted, by the setting's name with _reached; of a budget each of its bounds."""
    found = {name: value for name, value in settings.items() if name.endswith("_reached")}
    bounds = found.pop("budget_reached", {})
    return found | {f"{name}_reached": value for name, value in bounds.items()}


def result_row(
    job: Job, tracker: Any, models: Models, plans: dict[str, Plan], images: dict[str, Any], found: dict[str, Any]
) -> Row:
    """The row of a job, with costs measured and pictures drawn. images: the first samples by model. found: `models`, metrics
    by model, and `by_steps`.
    """
    folder, captions, plan, names = job.folder, job.prompts.captions, plans["denoiser"], list(models.by_name())
    with job.stage("timing"):
        costs = measure_cost(job, models, plans)
        masked = masked_parts(models.student, plans)
        sparse_files = export_sparse(masked, folder / "sparse")
    with job.stage("plotting"):
        drawn = draw_job(job, plans, masked, images)
    row: Row = {
        "settings": job.described,
        "models": {who: {**found["models"].get(who, {}), **costs.get(who, {})} for who in ("real", *names)},
        "plan": [edit.to_dict() for edit in plan.edits],
        "reached": reached_by(plan.settings),
        "by_steps": found["by_steps"],
        "curve": read_curve(folder / "distill" / "curve"),
        "protocol": protocol_of(job),
        "seconds": job.seconds,
        "environment": environment(job.device),
    }
    if sparse_files:
        row["models"][names[-1]]["sparse_file"] = sparse_files
    if job.settings.deployment:
        with job.stage("deployment"):
            measure_deployed(job, row, models.student)
    if job.settings.metrics:
        with job.stage("metrics"):
            measure_into(job, row, models.teacher.fingerprint())
    add_training(row, folder / "distill")
    if tracker is not None:
        tracker.attempt(lambda run: log_result(run, row, plan, drawn, captions))
        if job.settings.wandb.log_student:
            tracker.attempt(lambda run: log_student(run, folder / "student"))
    return row


def draw_job(job: Job, plans: dict[str, Plan], masked: dict[str, nn.Module], images: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Writes samples, plan, and scores or sparsity as pictures to the job's folder, and sounds; returns the samples, upright.

    masked: the networks with masked weights; images: the first samples by model.
    """
    folder, teacher = job.folder, job.teacher
    if job.sound is not None:
        write_sounds(folder / "sounds", images, job.sound)
    drawn = {who: upright(samples, job.sound) for who, samples in images.items()}
    draw_samples(folder / "samples.png", drawn, job.prompts.captions)
    draw_plan(teacher.denoiser, plans["denoiser"], folder / "plan.png")
    if masked:
        draw_sparsity(masked, plans, folder / "sparsity.png")
    else:
        draw_scores(teacher.denoiser, plans["denoiser"], folder / "scores.png")
    return drawn


def protocol_of(job: Job) -> dict[str, Any]:
    """How the figures of a row were measured."""

    return {
        "extractor": hydra.utils.get_class(job.settings.task.features["_target_"]).description,
        **asdict(job.settings.evaluation),
        **({} if job.prompts.captioned else {"guidance_scale": None}),  # nothing to guide by without captions
        "seeds": SEEDS[job.settings.evaluation.seeds],
    }


def add_training(row: Row, folder: Path) -> None:
    """What the method's callbacks told of the training in `folder`, where they did."""
    if (folder / REPORT).is_file():
        row["training"] = read_json(folder / REPORT, f"delete {folder.parent} and run the job again")
        trained = row["training"].get("denoiser", {})
        row["reached"] |= {name: value for name, value in trained.items() if name.endswith("_reached")}
