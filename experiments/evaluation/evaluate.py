"""The measuring stage of a job: samples of its models from equal seeds, compared with real images and with the teacher's."""

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from common.diffusion.autoencoders import image_channels
from common.errors import InputError
from common.metrics.distances import caption_retrieval, feature_mse, frechet_distance
from common.metrics.jackknife import Figures, estimate
from common.metrics.similarity import latent_mse, structural_similarity
from common.models.latent_diffusion import LatentDiffusion
from common.runtime.files import write_atomically
from common.runtime.processes import is_first
from experiments.evaluation.real_features import Reference
from experiments.evaluation.samples import CAPTIONS_OF_SAMPLES, captions_of, sample_folders, sampled_batches
from experiments.shared.job import Job
from experiments.shared.row import with_intervals
from experiments.shared.tensor_cache import load_tensors

LOOKED_AT = 16  # images of the data, to tell whether they are grey
AGAINST_TEACHER = ("latent_mse", "ssim")  # measured of a sample and the teacher's from the same seed


def evaluate(
    job: Job, models: Mapping[str, LatentDiffusion], reference: Reference, folder: Path
) -> tuple[dict[str, dict[str, Any]], dict[str, torch.Tensor]]:
    """Figures of each model by its name, and of "real" images for the floor of the distances; and the first images (uint8).

    The samples of each are kept in <folder>/<who>/; those of "teacher", which come first or are there already, are shared by
    all jobs. Of the processes of a job all sample, and the first one compares.
    """
    captions = job.prompts.captions
    rows: dict[str, dict[str, Any]] = {}
    if is_first():
        floor = reference.floor_features
        rows["real"] = {**with_intervals(estimate(reference.figures(floor), len(floor))), **reference.counts(floor)}
    folders = sample_folders(job, ["teacher", *models], job.teacher.fingerprint(), folder)
    first_images: dict[str, torch.Tensor] = {}
    for who, model in models.items():
        if job.prompts.captioned:
            write_atomically(folders[who] / CAPTIONS_OF_SAMPLES, captions_of(folders[who], captions))
        batches = sampled_batches(job, model, captions, reference.extractor, who, folders[who], read=is_first())
        if not is_first():
            deque(batches, maxlen=0)
            continue
        features, originals, means = [], [], {name: [] for name in AGAINST_TEACHER}
        for name, samples in batches:
            original = samples if who == "teacher" else load_tensors(folders["teacher"] / name)
            first_images.setdefault(who, samples["images"])
            features.append(samples["features"])
            originals.append(original["features"])
            for mean, values in against_teacher(job, samples, original).items():
                means[mean].append(values)
        found, there = torch.cat(features), torch.cat(originals)
        figures = sample_figures(job, reference, found, there, {name: torch.cat(values) for name, values in means.items()})
        rows[who] = {**with_intervals(estimate(figures, len(found))), **reference.counts(found)}
    return rows, first_images


def against_teacher(job: Job, samples: dict[str, torch.Tensor], originals: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What is measured of each sample of a batch and the teacher's from the same seed, (count,)."""
    if samples is originals:
        return {"latent_mse": torch.zeros(len(samples["latents"])), "ssim": torch.ones(len(samples["latents"]))}
    pair = (drawn["images"].to(job.device) for drawn in (samples, originals))
    return {
        "latent_mse": latent_mse(samples["latents"], originals["latents"]),
        "ssim": structural_similarity(*pair).double().cpu(),
    }


def sample_figures(
    job: Job, reference: Reference, features: torch.Tensor, originals: torch.Tensor, means: dict[str, torch.Tensor]
) -> Figures:
    """All figures of a model's samples, of those whose numbers are given.

    features, originals: of the samples, and of the teacher's from the same seeds. means: figures that are means over samples.
    """
    means = {**means, "feature_mse": feature_mse(features, originals)}
    names = job.prompts.names
    if names is not None:
        pool = min(64, len(set(reference.names)))
        seed = job.settings.evaluation.seed
        hits = caption_retrieval(features, names, reference.all_features, reference.names, pool, seed)
        means["caption_retrieval"] = hits.double()
    distances = reference.figures(features)
    to_teacher = job.settings.task.distance_to_teacher

    def figures(kept: torch.Tensor) -> dict[str, float]:
        found = {name: values[kept].mean().item() for name, values in means.items()} | distances(kept)
        if to_teacher:
            found[f"{reference.frechet}_to_teacher"] = frechet_distance(originals[kept], features[kept])
        return found

    return figures


def check_image_size(images: torch.Tensor, teacher: LatentDiffusion) -> None:
    """InputError when the teacher's images and real ones (uint8) differ in size or in colours: their features would as well."""
    size = tuple(images.shape[2:])
    if size != teacher.image_size:
        drawn, real = (" x ".join(map(str, shape)) for shape in (teacher.image_size, size))
        raise InputError(f"The teacher's images are {drawn}, those of the data {real}: give task.data of the teacher's size.")
    if image_channels(teacher.autoencoder.config) == 1 and images.shape[1] == 3:
        first = images[:LOOKED_AT]
        if not (first == first[:, :1]).all():
            raise InputError("The teacher's images are grey, and those of the data in colour: give task.data of grey ones.")
