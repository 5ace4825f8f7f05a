"""The stages of a job, each with the floating-point operations and the peak memory that it takes, by job_cost.py.

Operations are twice the MACs, attention products among them, which published MACs usually omit; a backward pass is two forward
passes, and gradient checkpointing one more.
"""

from dataclasses import dataclass

import torch

from common.cost.macs import count_parameters
from common.cost.peak_memory import forward_bytes, step_bytes
from common.diffusion.autoencoders import decode, encode
from common.diffusion.sampling import predict
from common.models.latent_diffusion import at_once
from experiments.dry_run.job_cost import SINGLE_BYTES, JobCost, calibration_size
from experiments.evaluation.samples import evaluation_scheduler
from experiments.training.distill_student import TRAINING_PRECISIONS


@dataclass(frozen=True)
class Stage:
    """Part of a job: what is done how often, floating-point operations in half and in single precision, bytes at the peak."""

    name: str
    what: str
    operations: float
    half: bool = False
    memory: int = 0


def job_stages(job: JobCost) -> list[Stage]:
    """All stages of the job, as if nothing of it were there yet."""
    found = [of(job) for of in (scoring, drawing, encoding, autoencoder_training, distilling, sampling, decoding)]
    return [stage for stage in found if stage is not None]


def scoring(job: JobCost) -> Stage | None:
    """The method's passes through the teacher's denoiser."""
    look, denoiser = job.forecast, job.teacher.denoiser
    if not look.forward:
        return None
    inputs, conditions = job.inputs(look.batch)
    held = sum(list(job.resident().values())[:2])
    if look.backward:  # gradients, and either their sums or the copy of the network that has them
        held += 2 * SINGLE_BYTES * count_parameters(denoiser)
        held += step_bytes(denoiser, lambda: predict(denoiser, *inputs, conditions).square().mean(), job.half, False)
    else:
        held += forward_bytes(denoiser, lambda: predict(denoiser, *inputs, conditions), job.half)
    what = f"<= {look.forward:,} samples" + (" and back" if look.backward else "")
    operations = 2 * job.macs["teacher"].total * (look.forward + 2 * look.backward)
    return Stage("scoring", f"{what}, {look.batch} at once", operations, job.half, held)


def drawing(job: JobCost) -> Stage | None:
    """What the teacher draws to train the student on, once."""
    if not job.draws_data:
        return None
    data, denoiser = job.training_data, job.teacher.denoiser
    size = calibration_size(job.settings.calibration, job.teacher)
    rows, at_once = size.passes(data["guidance_scale"]), data["batch_size"]
    count = data["images"]
    inputs, conditions = job.inputs(at_once * rows)
    held = sum(job.resident().values()) + forward_bytes(denoiser, lambda: predict(denoiser, *inputs, conditions), job.half)
    operations = 2 * job.macs["teacher"].total * count * rows * job.passes(job.teacher.scheduler, data["steps"])
    what = f"{count:,} training samples, {data['steps']} steps, {at_once} at once"
    return Stage("drawing", what, operations, job.half, held)


def encoding(job: JobCost) -> Stage | None:
    """Latents and embeddings of the training images, once."""
    if not job.settings.distill.steps:
        return None
    rows = job.training_images
    batch, autoencoder = at_once(job.settings.training_rows.batch_size, *job.teacher.image_size), job.teacher.autoencoder
    held = sum(job.resident().values()) + forward_bytes(autoencoder, lambda: encode(autoencoder, job.images(batch)))
    flip, once = job.settings.training_rows.flip, job.image_operations
    views = once["encode"] * (1 + flip)
    if job.draws_data:  # latents are there; mirrored ones are decoded, turned and encoded
        views = flip * (once["decode"] + once["encode"])
    operations = rows * (views + once["read"])
    return Stage("encoding", f"{rows:,} images, {batch} at once", operations, memory=held)


def autoencoder_training(job: JobCost) -> Stage | None:
    """Where the method prunes the autoencoder; its memory is not estimated."""
    settings = job.settings.distill.autoencoder
    if "autoencoder" not in job.method.pruned_parts or not settings.steps:
        return None
    once = job.image_operations["encode"] + job.image_operations["decode"]
    half = TRAINING_PRECISIONS[job.settings.distill.trainer["precision"]]
    what = f"{settings.steps:,} steps of {settings.batch_size}"
    return Stage("autoencoder", what, 3 * once * settings.steps * settings.batch_size, half)


def distilling(job: JobCost) -> Stage | None:
    """Optimiser steps of batch_size x accumulate samples."""
    settings = job.settings.distill
    if not settings.steps:
        return None
    samples = settings.steps * settings.batch_size * settings.accumulate
    half = TRAINING_PRECISIONS[settings.trainer["precision"]]
    held = sum(job.distillation().values())
    held += job.activations(settings.batch_size, half, settings.gradient_checkpointing)
    what = f"{settings.steps:,} steps of {settings.batch_size} x {settings.accumulate}"
    return Stage("distilling", what, 2 * job.step_macs() * samples, half, held)


def sampled(job: JobCost) -> tuple[int, int]:
    """Samples through the teacher's denoiser and through the student's, for all that is measured."""
    settings, trained = job.settings.evaluation, bool(job.settings.distill.steps)
    scheduler = evaluation_scheduler(settings.scheduler, job.teacher.scheduler)
    passes = [job.passes(scheduler, steps) for steps in (settings.steps, *settings.more_steps)]
    each = settings.images * job.guided * sum(passes)
    return each, (1 + trained) * each + on_the_way(job) * settings.images * job.guided * passes[0]


def on_the_way(job: JobCost) -> int:
    """How often the student is measured while it is distilled."""
    every = job.settings.evaluation.every
    return max(0, job.settings.distill.steps - 1) // every if every else 0


def sampling(job: JobCost) -> Stage:
    """Images of the teacher, of the pruned and of the distilled student, from noise to latents."""
    settings, denoiser = job.settings.evaluation, job.teacher.denoiser
    theirs, ours = sampled(job)
    inputs, conditions = job.inputs(job.samples_at_once * job.guided)
    held = job.measured() + forward_bytes(denoiser, lambda: predict(denoiser, *inputs, conditions), job.half)
    what = f"{settings.images:,} images a model, {settings.steps} steps, {job.samples_at_once} at once"
    operations = 2 * (theirs * job.macs["teacher"].total + ours * job.macs["student"].total)
    return Stage("sampling", what, operations, job.half, held)


def decoding(job: JobCost) -> Stage:
    """Those latents to images; what features of them cost is left out."""
    settings, autoencoder = job.settings.evaluation, job.teacher.autoencoder
    batch = at_once(job.samples_at_once, *job.teacher.image_size)
    latents = torch.empty(batch, *job.teacher.latent_shape, device="meta")
    held = job.measured() + forward_bytes(autoencoder, lambda: decode(autoencoder, latents))
    rounds = 1 + len(settings.more_steps)
    images = settings.images * ((2 + bool(job.settings.distill.steps)) * rounds + on_the_way(job))
    what = f"{images:,} images, {batch} at once"
    return Stage("decoding", what, images * job.image_operations["decode"], memory=held)
