"""The measuring stage of a job: samples from equal seeds and their distances."""

import hashlib
import json
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from common.batches import SharedNoise, generator_for, mix_seed, seeded_normal
from common.data_folder import data_content
from common.errors import InputError
from common.files import write_atomically
from common.processes import is_first
from common.progress import progress_bar
from common.sampling import sample_latents
from common.teachers import Teacher
from experiments.caches import cached_batches, content_name, load_tensors
from experiments.jobs import AS_BEFORE, prompts_content
from experiments.precision import inference_autocast, precision_suffix

FEATURES_AT_ONCE = 512  # of real images, in one file
SAMPLING = ("images", "steps", "guidance_scale", "batch_size", "split", "seed")  # what the samples of a model depend on
CAPTIONS_OF_SAMPLES = "captions.sha256"  # beside the samples of a model: what they were drawn of
SEEDS = {
    "per_sample": "one per sample, from (seed, index)",
    "shared": "one generator for all, which draws for one sample after the other",
}


def evaluation_prompts(cfg: DictConfig) -> tuple[list[str], list[str] | None]:
    """Captions and names of the images to sample: a seeded draw without repetition while there are enough.

    With evaluation.prompts the first of that file, which have no names. Without captions in the data set: empty ones, and no
    names.
    """
    data = hydra.utils.instantiate(cfg.task.data, split=cfg.evaluation.split)
    count = cfg.evaluation.images
    for name in ("images", "batch_size", "steps"):
        if cfg.evaluation[name] < (2 if name == "images" else 1):
            raise InputError(f"evaluation.{name}={cfg.evaluation[name]} is too small.")
    at_once = cfg.evaluation.micro_batch_size
    if at_once is not None and at_once < 1:
        raise InputError(f"evaluation.micro_batch_size={at_once}: give at least 1, or null for evaluation.batch_size.")
    if cfg.evaluation.seeds not in SEEDS:
        raise InputError(f"evaluation.seeds={cfg.evaluation.seeds!r}: choose {' or '.join(SEEDS)}.")
    if cfg.evaluation.every < 0 or any(steps < 1 for steps in cfg.evaluation.more_steps):
        given = f"evaluation.every={cfg.evaluation.every}, evaluation.more_steps={list(cfg.evaluation.more_steps)}"
        raise InputError(f"{given}: `every` is at least 0, and each number of steps at least 1.")
    if cfg.evaluation.prompts is not None:
        return prompts_of_file(cfg, hasattr(data, "captions")), None
    if not hasattr(data, "captions"):
        return [""] * count, None
    order = torch.randperm(len(data), generator=generator_for(cfg.evaluation.seed, 1)).tolist()
    chosen = [order[position % len(order)] for position in range(count)]
    return [data.captions[i] for i in chosen], None if data.names is None else [data.names[i] for i in chosen]


def prompts_of_file(cfg: DictConfig, captioned: bool) -> list[str]:
    """The first evaluation.images prompts of evaluation.prompts; InputError when it has fewer or the task takes none."""
    from common.caption_files import read_prompts

    path, count = cfg.evaluation.prompts, cfg.evaluation.images
    if not captioned:
        raise InputError(f"evaluation.prompts={path}: task={cfg.task.name} takes no captions; give null.")
    prompts, empty = read_prompts(Path(path))
    if empty:
        print(f"{path}: {empty} empty lines are left out, {len(prompts)} prompts remain", file=sys.stderr)
    if len(prompts) < count:
        raise InputError(f"{path} has {len(prompts)} prompts: evaluation.images={count} can be {len(prompts)} at most.")
    return prompts[:count]


class Reference:
    """Features of real images: `features` to compare with, and `floor_features` of as many others as are sampled.

    all_names and all_features: of every image of the data set, where it names them; else None.
    """

    def __init__(self, cfg: DictConfig, split: str, cache: Path, device: torch.device):
        from common.features import extract_features

        self.extractor = hydra.utils.instantiate(cfg.task.features).to(device)
        self.frechet, self.kernel = (f"{kind}_{self.extractor.name}" for kind in (self.extractor.distance, "kd"))
        data = hydra.utils.instantiate(cfg.task.data, split=split)

        self.all_names = getattr(data, "names", None)
        order = torch.randperm(len(data), generator=generator_for(cfg.evaluation.seed, 2))
        held_back = min(cfg.evaluation.images, len(data) // 2)
        wanted = held_back + cfg.evaluation.reference_images
        needed = order if self.all_names is not None else order[:wanted]

        def compute(rows: range) -> dict[str, torch.Tensor]:
            return {"features": extract_features(self.extractor, data.images[needed[rows.start : rows.stop]])}

        settings = (OmegaConf.to_container(cfg.task[part], resolve=True) for part in ("features", "data"))
        name = content_name("real", *settings, split, needed.tolist(), *data_content(data)[:1])  # features of images alone
        parts = []
        with progress_bar("features of real images", len(needed)) as bar:
            for _, part in cached_batches(cache / name, len(needed), FEATURES_AT_ONCE, compute):
                parts.append(part["features"])
                bar.advance(len(parts[-1]))
        features = torch.cat(parts)
        self.held_back = order[:held_back]
        self.floor_features, self.features = features[:held_back], features[held_back:wanted]
        self.all_features = None if self.all_names is None else features[order.argsort()]
        self.image_size = tuple(data.images.shape[2:])
        self.seed = cfg.evaluation.seed

    def distances(self, features: torch.Tensor) -> dict[str, float]:
        """Fréchet and kernel distance (x1000) of `features` (count, width) to the real ones, named for the extractor."""
        from common.distances import frechet_distance, kernel_distance

        kernel, spread = kernel_distance(self.features, features, subset_size=min(100, len(features)), seed=self.seed)
        return {
            self.frechet: frechet_distance(self.features, features),
            self.kernel: 1000 * kernel,
            f"{self.kernel}_spread": 1000 * spread,
            "reference_images": len(self.features),
            "images": len(features),
        }


def sampled_batches(
    cfg: DictConfig, model: Teacher, captions: list[str], extractor: nn.Module, who: str, folder: Path, read: bool = True
) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """File name and `latents`, `images` (uint8) and `features` of each batch, sample i from the seed of (evaluation.seed, i).

    Each batch is kept in `folder`: an interrupted evaluation goes on with the next one, and several processes share them out.
    read: as in cached_batches.
    """
    from common.features import extract_features

    settings = cfg.evaluation
    at_once = settings.get("micro_batch_size") or settings.batch_size
    scheduler = evaluation_scheduler(cfg, model.scheduler)
    shared = settings.seeds == "shared"
    draw = SharedNoise(settings.seed) if shared else seeded_normal

    def compute(rows: range) -> dict[str, torch.Tensor]:
        conditions, empty = model.encode_captions(captions[rows.start : rows.stop]), model.empty_condition()
        with inference_autocast(cfg, model.device):
            latents = sample_latents(
                model.denoiser,
                scheduler,
                model.latent_shape,
                list(rows) if shared else [mix_seed(settings.seed, 3, index) for index in rows],
                conditions,
                empty,
                settings.steps,
                settings.guidance_scale,
                at_once,
                draw=draw,
            ).float()
        images = model.decode_latents(latents, at_once)
        return {"latents": latents, "images": images, "features": extract_features(extractor, images)}

    with progress_bar(f"sampling: {who}", len(captions)) as bar:
        for place, found in enumerate(cached_batches(folder, len(captions), settings.batch_size, compute, read)):
            yield found
            bar.advance(min(settings.batch_size, len(captions) - place * settings.batch_size))


def evaluation_scheduler(cfg: DictConfig, own: Any) -> Any:
    """The scheduler of evaluation.scheduler, with what it does not set from the teacher's `own`; without one, the teacher's.

    InputError for a name that diffusers does not have.
    """
    if cfg.evaluation.scheduler is None:
        return own
    import diffusers

    settings = OmegaConf.to_container(cfg.evaluation.scheduler, resolve=True)
    name = settings.pop("name", None)
    kind = getattr(diffusers, f"{name}Scheduler", None)
    if kind is None:
        raise InputError(f"evaluation.scheduler.name={name}: diffusers has no {name}Scheduler; it has PNDM and DDIM, say.")
    return kind.from_config(own.config, **settings)


def sample_folders(cfg: DictConfig, who: Iterable[str], fingerprint: str, folder: Path, cache: Path) -> dict[str, Path]:
    """Where the samples of each model are kept; fingerprint is the teacher's."""
    return {name: shared_samples(cfg, fingerprint, cache) if name == "teacher" else folder / name for name in who}


def shared_samples(cfg: DictConfig, fingerprint: str, cache: Path) -> Path:
    """The folder of the samples of the teacher with this fingerprint, for all jobs of the same data and protocol."""
    parts = (OmegaConf.to_container(cfg.task[part], resolve=True) for part in ("features", "data"))
    protocol = {name: cfg.evaluation[name] for name in SAMPLING}
    later = {name: cfg.evaluation[name] for name in ("scheduler", "seeds")}
    protocol |= {name: value for name, value in later.items() if value != AS_BEFORE[f"evaluation.{name}"]}
    name = content_name("samples", fingerprint, *parts, protocol, *prompts_content(cfg.evaluation.prompts))
    return cache / f"samples-{name}{precision_suffix(cfg)}"


def captions_of(samples: Path, captions: list[str]) -> bytes:
    """A hash of the captions; InputError when those that the kept samples in the folder were drawn of were others."""
    digest = hashlib.sha256(json.dumps(captions).encode()).hexdigest().encode()
    kept = samples / CAPTIONS_OF_SAMPLES
    if kept.is_file() and kept.read_bytes() != digest:
        raise InputError(f"{samples} holds samples of other captions than the data has now: put those back, or delete it.")
    return digest


def evaluate(
    cfg: DictConfig,
    models: dict[str, Teacher],
    prompts: tuple[list[str], list[str] | None],
    folder: Path,
    cache: Path,
) -> tuple[dict[str, dict[str, Any]], dict[str, torch.Tensor]]:
    """Figures for "teacher" and each other model, and "real" for the floor of the distances; and the first images (uint8).

    models: whole pipelines, the teacher's and those with a student in it. prompts: captions and names of evaluation_prompts.
    The samples of each are kept in <folder>/<who>/; the teacher's, which comes first, are shared by all jobs. Of the processes
    of a job all sample, and the first one compares.
    """
    from common.distances import caption_retrieval, frechet_distance
    from common.similarity import latent_mse, structural_similarity

    captions, names = prompts
    teacher = models["teacher"]
    reference = Reference(cfg, cfg.evaluation.split, cache, teacher.device)
    rows: dict[str, dict[str, Any]] = {}
    if is_first():
        rows["real"] = reference.distances(reference.floor_features)
    folders = sample_folders(cfg, models, teacher.fingerprint(), folder, cache)
    first_images: dict[str, torch.Tensor] = {}
    for who, model in models.items():
        features, originals, squared, similar = [], [], 0.0, float(who == "teacher")
        if any(captions):
            write_atomically(folders[who] / CAPTIONS_OF_SAMPLES, captions_of(folders[who], captions))
        batches = sampled_batches(cfg, model, captions, reference.extractor, who, folders[who], read=is_first())
        if not is_first():
            deque(batches, maxlen=0)
            continue
        for name, samples in batches:
            original = samples if who == "teacher" else load_tensors(folders["teacher"] / name)
            check_size(samples["images"], reference.image_size)
            first_images.setdefault(who, samples["images"])
            features.append(samples["features"])
            originals.append(original["features"])
            if who != "teacher":
                share = len(samples["latents"]) / len(captions)
                squared += share * latent_mse(samples["latents"], original["latents"])
                pair = (drawn["images"].to(teacher.device) for drawn in (samples, original))
                similar += share * structural_similarity(*pair)
        found = torch.cat(features)
        rows[who] = {**reference.distances(found), "latent_mse": squared, "ssim": similar}
        if cfg.task.distance_to_teacher:
            rows[who][f"{reference.frechet}_to_teacher"] = frechet_distance(torch.cat(originals), found)
        if names is not None:
            pool = min(64, len(set(reference.all_names)))
            rows[who]["caption_retrieval"] = caption_retrieval(
                found, names, reference.all_features, reference.all_names, pool, cfg.evaluation.seed
            )
    return rows, first_images


def check_size(images: torch.Tensor, size: tuple[int, int]) -> None:
    """InputError when samples and real images differ in height or width: their features would not be comparable."""
    if tuple(images.shape[2:]) != size:
        drawn, real = ("x".join(map(str, shape)) for shape in (images.shape[2:], size))
        raise InputError(f"The teacher draws {drawn} images, the data set has {real}: give task.data of the teacher's size.")
