"""The measuring stage of a job: samples from equal seeds, their distances, sizes and speeds."""

from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from common.batches import generator_for, mix_seed
from common.progress import progress_bar
from common.sampling import sample_latents
from common.teachers import Teacher
from experiments.caches import cached_tensors, content_name


def evaluation_prompts(cfg: DictConfig) -> tuple[list[str], list[str]]:
    """Captions and names of the images to sample: a seeded draw without repetition while there are enough."""
    data = hydra.utils.instantiate(cfg.task.data, split=cfg.evaluation.split)
    count = cfg.evaluation.images
    order = torch.randperm(len(data), generator=generator_for(cfg.evaluation.seed, 1)).tolist()
    chosen = [order[position % len(order)] for position in range(count)]
    return [data.captions[i] for i in chosen], [data.names[i] for i in chosen]


class Reference:
    """Features of real images: `features` to compare with, and as many others as are sampled, for the floor."""

    def __init__(self, cfg: DictConfig, cache: Path):
        from common.features import ImageFeatures, extract_features

        self.extractor = ImageFeatures()
        data = hydra.utils.instantiate(cfg.task.data, split=cfg.evaluation.split)

        def compute() -> dict[str, torch.Tensor]:
            with progress_bar("features of real images", len(data)) as bar:
                return {"features": extract_features(self.extractor, data.images, advance=bar.advance)}

        name = content_name("real", self.extractor.name, OmegaConf.to_container(cfg.task.data), cfg.evaluation.split)
        features = cached_tensors(cache / f"{name}.safetensors", compute)["features"]
        order = torch.randperm(len(data), generator=generator_for(cfg.evaluation.seed, 2))
        split = min(cfg.evaluation.images, len(data) // 2)
        self.held_back, rest = order[:split], order[split:][: cfg.evaluation.reference_images]
        self.floor_features, self.features = features[self.held_back], features[rest]
        self.all_features, self.all_names = features, data.names


def sample(cfg: DictConfig, teacher: Teacher, denoiser: nn.Module, captions: list[str], who: str) -> torch.Tensor:
    """Final latents of the captions, sample i from the seed of (evaluation.seed, i)."""
    settings = cfg.evaluation
    seeds = [mix_seed(settings.seed, 3, index) for index in range(len(captions))]
    with progress_bar(f"sampling: {who}", len(captions)) as bar:
        return sample_latents(
            denoiser,
            teacher.scheduler,
            teacher.latent_shape,
            seeds,
            teacher.encode_captions(captions),
            teacher.empty_condition(),
            settings.steps,
            settings.guidance_scale,
            settings.batch_size,
            bar.advance,
        )


def evaluate(
    cfg: DictConfig, teacher: Teacher, denoisers: dict[str, nn.Module], folder: Path, cache: Path
) -> tuple[dict[str, dict[str, Any]], dict[str, torch.Tensor]]:
    """Figures for "teacher" and each student, and "real" for the floor of the distances; and the images (uint8).

    The samples of each are kept in <folder>/<who>.safetensors; the teacher's are shared by all jobs.
    """
    from common.distances import caption_retrieval, frechet_distance, kernel_distance
    from common.features import extract_features
    from common.similarity import latent_mse, structural_similarity

    captions, names = evaluation_prompts(cfg)
    reference = Reference(cfg, cache)
    subset = min(100, len(captions))
    pool = min(64, len(set(reference.all_names)))
    label = reference.extractor.name

    def distances(features: torch.Tensor) -> dict[str, float]:
        kernel, spread = kernel_distance(reference.features, features, subset_size=subset, seed=cfg.evaluation.seed)
        return {
            f"fd_{label}": frechet_distance(reference.features, features),
            f"kd_{label}": 1000 * kernel,
            f"kd_{label}_spread": 1000 * spread,
        }

    rows: dict[str, dict[str, Any]] = {"real": distances(reference.floor_features)}
    shared = content_name(
        "samples",
        teacher.fingerprint(),
        OmegaConf.to_container(cfg.task.data),
        OmegaConf.to_container(cfg.evaluation, resolve=True),
    )
    teacher_samples: dict[str, torch.Tensor] = {}
    images: dict[str, torch.Tensor] = {}
    for who, denoiser in denoisers.items():

        def compute(who: str = who, denoiser: nn.Module = denoiser) -> dict[str, torch.Tensor]:
            latents = sample(cfg, teacher, denoiser, captions, who)
            drawn = teacher.decode_latents(latents)
            return {"latents": latents, "images": drawn, "features": extract_features(reference.extractor, drawn)}

        path = cache / f"{shared}.safetensors" if who == "teacher" else folder / f"{who}.safetensors"
        samples = cached_tensors(path, compute)
        teacher_samples = teacher_samples or samples
        images[who] = samples["images"]
        rows[who] = {
            **distances(samples["features"]),
            "caption_retrieval": caption_retrieval(
                samples["features"], names, reference.all_features, reference.all_names, pool, cfg.evaluation.seed
            ),
            "latent_mse": latent_mse(samples["latents"], teacher_samples["latents"]),
            "ssim": structural_similarity(samples["images"], teacher_samples["images"]),
        }
    return rows, images


def measure_cost(cfg: DictConfig, teacher: Teacher, denoisers: dict[str, nn.Module]) -> dict[str, dict[str, Any]]:
    """Parameters, MACs of one forward pass of one sample, file size, and latency against the teacher in the same run."""
    from common.cost import checkpoint_bytes, count_macs, count_parameters
    from common.latency import compare_latency

    def arguments(batch: int) -> tuple[tuple[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]]:
        latents = torch.zeros(batch, *teacher.latent_shape, device=teacher.device)
        timesteps = torch.full((batch,), 500, device=teacher.device)
        conditions = {name: value.expand(batch, *value.shape[1:]) for name, value in teacher.empty_condition().items()}
        return (latents, timesteps), conditions

    inputs, conditions = arguments(cfg.evaluation.latency_batch)

    def call(denoiser: nn.Module) -> Any:
        def run() -> None:
            with torch.no_grad():
                denoiser(*inputs, **conditions)

        return run

    calls = {who: call(denoiser) for who, denoiser in denoisers.items()}
    latencies = compare_latency(calls, "teacher", rounds=cfg.evaluation.latency_rounds)
    rows = {}
    for who, denoiser in denoisers.items():
        macs = count_macs(denoiser, *arguments(1))
        latency = latencies[who]
        rows[who] = {
            "parameters": count_parameters(denoiser),
            "macs": macs.total,
            "macs_without_attention_products": macs.without_attention_products,
            "checkpoint_bytes_fp16": checkpoint_bytes(denoiser),
            "latency": {
                "milliseconds": latency.milliseconds,
                "interquartile_range": latency.interquartile_range,
                "ratio": latency.ratio,
                "ratio_spread": latency.ratio_spread,
                "time_reduction": latency.time_reduction,
            },
        }
    return rows
