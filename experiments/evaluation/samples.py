"""Samples of a model from seeds, kept on the disk by batches."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.denoisers.denoiser import architecture_of
from common.diffusion.images import with_channels
from common.diffusion.noise_schedule import check_noise, is_flow, knows_flows, same_noise
from common.diffusion.sampling import set_timesteps
from common.errors import InputError, first_line
from common.models.latent_diffusion import LatentDiffusion
from common.runtime.content import content_name
from common.runtime.seeding import SharedNoise, mix_seed, seeded_normal
from experiments.shared.identity import identified
from experiments.shared.job import Job
from experiments.shared.settings import Settings
from experiments.shared.tensor_cache import cached_batches

# what the samples of a model depend on
SAMPLING = ("prompts", "images", "steps", "guidance_scale", "batch_size", "split", "seed", "seeds", "scheduler")
CAPTIONS_OF_SAMPLES = "captions.sha256"  # beside the samples of a model: what they were drawn of
SEEDS = {
    "per_sample": "one per sample, from (seed, index)",
    "shared": "one generator for all, which draws for one sample after the other",
}


def sampled_batches(
    job: Job, model: LatentDiffusion, captions: list[str], extractor: nn.Module, who: str, folder: Path, read: bool = True
) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """File name and `latents`, `images` (uint8) and `features` of each batch, sample i from the seed of (evaluation.seed, i).

    Each batch is kept in `folder`: an interrupted evaluation goes on with the next one, and several processes share them out.
    read: as in cached_batches.
    """
    from common.metrics.efficientnet import extract_features

    settings = job.settings.evaluation
    at_once = settings.micro_batch_size or settings.batch_size
    scheduler = evaluation_scheduler(settings.scheduler, model.scheduler)
    shared = settings.seeds == "shared"
    draw = SharedNoise(settings.seed) if shared else seeded_normal

    def compute(rows: range) -> dict[str, torch.Tensor]:
        seeds = list(rows) if shared else [mix_seed(settings.seed, 3, index) for index in rows]
        own, how = captions[rows.start : rows.stop], (settings.steps, settings.guidance_scale, at_once)
        with job.autocast():
            latents = model.sample(seeds, own, *how, scheduler=scheduler, draw=draw).float()
        images = draw_images(job, model, latents, at_once)
        return {"latents": latents, "images": images, "features": extract_features(extractor, images)}

    yield from cached_batches(f"sampling: {who}", folder, len(captions), settings.batch_size, compute, read)


def draw_images(job: Job, model: LatentDiffusion, latents: torch.Tensor, batch_size: int = 64) -> torch.Tensor:
    """uint8 images of final latents with the channels that the task's data has: 1 of spectrograms, else 3."""
    return with_channels(model.decode_latents(latents, batch_size), 3 if job.settings.task.sound is None else 1)


def check_sampling(settings: Settings, teacher: LatentDiffusion) -> None:
    """InputError where a scheduler cannot be made of evaluation.scheduler, or has fewer steps than are asked for."""
    evaluation = settings.evaluation
    try:
        own = evaluation_scheduler(evaluation.scheduler, teacher.scheduler)
    except Exception as error:  # each of diffusers' schedulers refuses settings in its own way
        raise InputError(f"evaluation.scheduler: {evaluation.scheduler} cannot be made: {first_line(error)}.") from error
    flow = is_flow(teacher.scheduler)
    if is_flow(own) != flow or (flow and not knows_flows(own)):
        raise InputError(
            f"evaluation.scheduler: a {type(own).__name__} does not sample what the teacher has learned of noise; null is the "
            f"teacher's own, a {type(teacher.scheduler).__name__}."
        )
    check_noise("evaluation.scheduler", own)
    groups = {"calibration": asdict(settings.calibration), "evaluation": asdict(evaluation), "method": settings.method}
    groups |= {"task.data": settings.task.data, "task.trained_on": settings.task.trained_on or {}}
    for name, scale in ((f"{group}.guidance_scale", given.get("guidance_scale")) for group, given in groups.items()):
        if teacher.distilled and scale is not None and scale > 1:
            raise InputError(
                f"{name}={scale:g}: the teacher is distilled to few steps that are not guided (is_distilled in its "
                "model_index.json): budget.guidance_scale=1 is needed."
            )
    wanted = [("calibration.steps", teacher.scheduler, settings.calibration.steps), ("evaluation.steps", own, evaluation.steps)]
    wanted += [("evaluation.more_steps", own, steps) for steps in evaluation.more_steps]
    for name, scheduler, steps in wanted:
        trained = scheduler.config.num_train_timesteps
        if steps > trained:
            raise InputError(f"{name}={steps}: the teacher's schedule has {trained} timesteps, which is the most.")
        try:
            again = type(scheduler).from_config(scheduler.config)
            set_timesteps(again, steps, torch.zeros(teacher.latent_shape), architecture_of(teacher.denoiser))
        except Exception as error:
            raise InputError(f"{name}={steps}: {type(scheduler).__name__} cannot take it: {first_line(error)}.") from error


def evaluation_scheduler(given: dict[str, Any] | None, own: Any) -> Any:
    """The scheduler that evaluation.scheduler names, with what it does not set from the teacher's `own`; or else that one.

    Which ones there may be, and with which settings, experiments.shared.settings_check has checked.
    """
    if given is None:
        return own
    import diffusers

    settings = {name: value for name, value in given.items() if name != "name"}
    return same_noise(getattr(diffusers, f"{given['name']}Scheduler"), own, **settings)


def sample_folders(job: Job, who: Iterable[str], fingerprint: str, folder: Path) -> dict[str, Path]:
    """Where the samples of each model are kept; fingerprint is the teacher's."""
    return {name: shared_samples(job, fingerprint) if name == "teacher" else folder / name for name in who}


def shared_samples(job: Job, fingerprint: str) -> Path:
    """The folder of the samples of the teacher with this fingerprint, for all jobs of the same data and protocol."""
    protocol = identified({name: value for name, value in asdict(job.settings.evaluation).items() if name in SAMPLING})
    name = content_name("samples", fingerprint, job.features_identity, job.data_identity, protocol)
    return job.cache / f"samples-{name}{job.precision_suffix}"


def captions_of(samples: Path, captions: list[str]) -> bytes:
    """A hash of the captions; InputError when those that the kept samples in the folder were drawn of were others."""
    digest = hashlib.sha256(json.dumps(captions).encode()).hexdigest().encode()
    kept = samples / CAPTIONS_OF_SAMPLES
    if kept.is_file() and kept.read_bytes() != digest:
        raise InputError(f"{samples} holds samples of other captions than the data has now: put those back, or delete it.")
    return digest
