"""The measuring stage of a job: samples of its models from equal seeds, compared with real images and with the teacher's."""

from collections import deque
from pathlib import Path
from typing import Any

import torch

from common.errors import InputError
from common.metrics.distances import caption_retrieval, frechet_distance
from common.metrics.similarity import latent_mse, structural_similarity
from common.models.latent_diffusion import LatentDiffusion
from common.runtime.files import write_atomically
from common.runtime.processes import is_first
from experiments.evaluation.models import Models
from experiments.evaluation.real_features import Reference
from experiments.evaluation.samples import CAPTIONS_OF_SAMPLES, captions_of, sample_folders, sampled_batches
from experiments.shared.job import Job
from experiments.shared.tensor_cache import load_tensors

LOOKED_AT = 16  # images of the data, to tell whether they are grey


def evaluate(
    job: Job, models: Models, reference: Reference, folder: Path
) -> tuple[dict[str, dict[str, Any]], dict[str, torch.Tensor]]:
    """Figures of each model, and of "real" images for the floor of the distances; and the first images (uint8).

    The samples of each are kept in <folder>/<who>/; the teacher's are shared by all jobs. Of the processes of a job all sample,
    and the first one compares.
    """
    captions, names = job.prompts.captions, job.prompts.names
    rows: dict[str, dict[str, Any]] = {}
    if is_first():
        rows["real"] = reference.distances(reference.floor_features)
    folders = sample_folders(job, models.by_name(), models.teacher.fingerprint(), folder)
    first_images: dict[str, torch.Tensor] = {}
    for who, model in models.by_name().items():
        features, originals, squared, similar = [], [], 0.0, float(who == "teacher")
        if job.prompts.captioned:
            write_atomically(folders[who] / CAPTIONS_OF_SAMPLES, captions_of(folders[who], captions))
        batches = sampled_batches(job, model, captions, reference.extractor, who, folders[who], read=is_first())
        if not is_first():
            deque(batches, maxlen=0)
            continue
        for name, samples in batches:
            original = samples if who == "teacher" else load_tensors(folders["teacher"] / name)
            first_images.setdefault(who, samples["images"])
            features.append(samples["features"])
            originals.append(original["features"])
            if who != "teacher":
                share = len(samples["latents"]) / len(captions)
                squared += share * latent_mse(samples["latents"], original["latents"])
                pair = (drawn["images"].to(job.device) for drawn in (samples, original))
                similar += share * structural_similarity(*pair)
        found = torch.cat(features)
        rows[who] = {**reference.distances(found), "latent_mse": squared, "ssim": similar}
        if job.settings.task.distance_to_teacher:
            rows[who][f"{reference.frechet}_to_teacher"] = frechet_distance(torch.cat(originals), found)
        if names is not None:
            pool = min(64, len(set(reference.names)))
            rows[who]["caption_retrieval"] = caption_retrieval(
                found, names, reference.all_features, reference.names, pool, job.settings.evaluation.seed
            )
    return rows, first_images


def check_image_size(images: torch.Tensor, teacher: LatentDiffusion) -> None:
    """InputError when the teacher's images and real ones (uint8) differ in size or in colours: their features would as well."""
    size = tuple(images.shape[2:])
    if size != teacher.image_size:
        drawn, real = (" x ".join(map(str, shape)) for shape in (teacher.image_size, size))
        raise InputError(f"The teacher's images are {drawn}, those of the data {real}: give task.data of the teacher's size.")
    if teacher.autoencoder.config.out_channels == 1 and images.shape[1] == 3:
        first = images[:LOOKED_AT]
        if not (first == first[:, :1]).all():
            raise InputError("The teacher's images are grey, and those of the data in colour: give task.data of grey ones.")
