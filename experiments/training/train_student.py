"""The training stage of a job: a pruned autoencoder first, then the denoiser on the latents that it makes."""

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from common.models.latent_diffusion import Teacher
from common.pruning.plan import Plan
from common.pruning.pruning_callback import PruningCallback
from common.runtime.collectives import on_first
from common.runtime.files import write_json
from experiments.training.cached_latents import training_rows
from experiments.training.distance_curve import DistanceCurve
from experiments.training.distill_student import distill
from experiments.training.finetune_autoencoder import finetune_autoencoder

REPORT = "report.json"


def train_student(
    cfg: DictConfig,
    teacher: Teacher,
    pruned: Teacher,
    plans: dict[str, Plan],
    method: Any,
    captions: list[str],
    folder: Path,
    cache: Path,
    loggers: Sequence[Any] = (),
) -> Teacher:
    """A trained copy of `pruned`; goes on from what an interrupted run has left in `folder`.

    A part of 0 steps stays as it is. What the callbacks of a part report is in <folder>/report.json.
    plans: of the parts that are pruned ("denoiser", "autoencoder"). method: its training_callbacks act in the training of each
    part. captions: of the samples measured on the way (evaluation.every).
    loggers: Lightning's, for the training of the denoiser.
    """
    student = pruned.with_parts(**{part: copy.deepcopy(getattr(pruned, part)) for part in plans})
    encoder, rows_folder = teacher, cache
    reports: dict[str, dict[str, Any]] = {}
    if "autoencoder" in plans:
        encoder, rows_folder = student, folder
        if cfg.distill.autoencoder.steps:
            images = hydra.utils.instantiate(cfg.task.data, split="train").images
            callbacks = method.training_callbacks(student.autoencoder, plans["autoencoder"])
            finetune_autoencoder(cfg, student.autoencoder, images, folder / "autoencoder", callbacks)
            reports["autoencoder"] = reports_of(callbacks)
    if cfg.distill.steps:
        rows = training_rows(cfg, encoder, rows_folder)
        callbacks = method.training_callbacks(student.denoiser, plans["denoiser"])
        watch = partial(DistanceCurve, cfg, student, captions, folder / "curve", cache, callbacks)
        watch = watch if cfg.evaluation.every else None
        trained = distill(cfg, teacher, student.denoiser, rows, folder, callbacks, watch, loggers)
        student = student.with_parts(denoiser=trained)
        reports["denoiser"] = reports_of(callbacks)
    on_first(lambda: write_json(folder / REPORT, reports))
    return student


def reports_of(callbacks: Sequence[PruningCallback]) -> dict[str, Any]:
    """What the callbacks tell of a training, for the result row."""
    return {name: value for each in callbacks for name, value in each.report().items()}
