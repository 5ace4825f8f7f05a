"""The training stage of a job: a pruned autoencoder first, then the denoiser on the latents that it makes."""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

from common.models.latent_diffusion import LatentDiffusion
from common.pruning.plan import Plan
from common.pruning.pruning_callback import PruningCallback
from common.runtime.collectives import on_first
from common.runtime.files import write_json
from common.training.batches import OtherConditions
from experiments.evaluation.real_features import Reference
from experiments.shared.job import Job
from experiments.training.cached_latents import training_rows
from experiments.training.distance_curve import DistanceCurve
from experiments.training.distill_student import distill
from experiments.training.finetune_autoencoder import finetune_autoencoder

REPORT = "report.json"


def train_student(
    job: Job,
    pruned: LatentDiffusion,
    plans: dict[str, Plan],
    reference: Reference | None = None,
    loggers: Sequence[Any] = (),
) -> LatentDiffusion:
    """A trained copy of `pruned`; goes on from what an interrupted run has left in the job's folder.

    A part of 0 steps stays as it is. The method's callbacks act in the training of each part; what they report is in
    distill/report.json. plans: of the parts that are pruned ("denoiser", "autoencoder"). reference: what samples are compared
    with on the way (evaluation.every); by default the images of the job's own split. loggers: Lightning's, for the training of
    the denoiser.
    """
    settings, teacher, folder = job.settings, job.teacher, job.folder / "distill"
    student = pruned.with_parts(**{part: copy.deepcopy(getattr(pruned, part)) for part in plans})
    encoder, rows_folder = teacher, job.cache
    reports: dict[str, dict[str, Any]] = {}
    if "autoencoder" in plans:
        encoder, rows_folder = student, folder
        if settings.distill.autoencoder.steps:
            images = job.training_data.images
            callbacks = job.method.training_callbacks(student.autoencoder, plans["autoencoder"])
            finetune_autoencoder(settings, student.autoencoder, images, folder / "autoencoder", callbacks)
            reports["autoencoder"] = reports_of(callbacks)
    if settings.distill.steps:
        rows = training_rows(job, encoder, rows_folder)
        if settings.distill.random_conditioning and teacher.text_encoder is not None:
            rows = OtherConditions(rows, settings.distill.random_conditioning, settings.seed)
        callbacks = job.method.training_callbacks(student.denoiser, plans["denoiser"])
        watch = None
        if settings.evaluation.every:
            reference = reference or Reference(job, settings.evaluation.split)
            watch = partial(DistanceCurve, job, student, reference, folder / "curve", callbacks)
        trained = distill(settings, teacher, student.denoiser, rows, folder, callbacks, watch, loggers)
        student = student.with_parts(denoiser=trained)
        reports["denoiser"] = reports_of(callbacks)
    on_first(lambda: write_json(folder / REPORT, reports))
    return student


def reports_of(callbacks: Sequence[PruningCallback]) -> dict[str, Any]:
    """What the callbacks tell of a training, for the result row."""
    return {name: value for each in callbacks for name, value in each.report().items()}
