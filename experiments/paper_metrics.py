"""The papers' metrics over the samples that a job keeps on disk: FID, KID, IS, CLIP score, PickScore, HPSv2, FAD.

cfg.metrics names them; each has

    needs_real                    whether it compares with rows of real images
    load(device)                  its network; InputError without a package or weights
    rows(images, captions)        features or scores of a batch of uint8 images
    figures(rows, real, seed)     numbers by the name of their column, of all rows together

They are no part of a job's id: they change nothing that the job made, and can be asked for later. One that cannot be had is
told in a line, and the others and the row are not lost.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf

from common.batches import generator_for
from common.data_folder import data_content
from common.errors import InputError
from common.lazy_images import subset
from common.progress import progress_bar
from common.saved_images import through_files
from experiments.caches import cached_tensors, content_name, load_tensors
from experiments.evaluate import captions_of, sample_folders

Figures = dict[str, dict[str, float]]


def metric_settings(cfg: DictConfig) -> dict[str, dict[str, Any]]:
    """What each metric of the configuration depends on beside the samples, by its name."""
    saved = OmegaConf.to_container(cfg.saved_images, resolve=True) if cfg.saved_images else None
    metrics = OmegaConf.to_container(cfg.metrics, resolve=True)
    return {name: {**settings, "saved_images": saved} for name, settings in metrics.items()}


def measure(
    cfg: DictConfig, names: list[str], folders: Mapping[str, Path], captions: list[str], cache: Path, device: torch.device
) -> tuple[Figures, dict[str, str]]:
    """Figures by model of the metrics `names`, and why others of them are missing, which is told on standard error as well.

    folders: of each model, the batches that experiments.evaluate.sampled_batches keeps. captions: of all samples, in order.
    """
    figures: Figures = {who: {} for who in folders}
    missing: dict[str, str] = {}
    for name in names:
        try:
            found = one_metric(cfg, name, folders, captions, cache, device)
        except InputError as error:
            missing[name] = str(error)
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        for who, values in found.items():
            figures[who] |= values
    return figures, missing


def one_metric(
    cfg: DictConfig, name: str, folders: Mapping[str, Path], captions: list[str], cache: Path, device: torch.device
) -> Figures:
    """Figures of one metric by model."""
    metric = hydra.utils.instantiate(cfg.metrics[name])
    metric.load(device)
    saved = metric_settings(cfg)[name]["saved_images"]
    real = real_rows(cfg, name, metric, cache) if metric.needs_real else None
    figures = {}
    for who, folder in folders.items():
        with progress_bar(f"{name}: {who}", len(captions)) as bar:
            rows = []
            for images, chosen in batches(folder, captions):
                rows.append(metric.rows(through_files(images, saved), chosen))
                bar.advance(len(images))
        figures[who] = metric.figures(torch.cat(rows), real, cfg.evaluation.seed)
    return figures


def batches(folder: Path, captions: list[str]) -> Iterator[tuple[torch.Tensor, list[str] | None]]:
    """Images of each kept batch with their captions, which are None where there are none at all.

    InputError where not every sample is there any more, or where they were drawn of other captions.
    """
    start, captioned = 0, any(captions)
    if captioned:
        captions_of(folder, captions)
    for path in sorted(folder.glob("[0-9]*.safetensors")):
        images = load_tensors(path)["images"]
        yield images, captions[start : start + len(images)] if captioned else None
        start += len(images)
    if start != len(captions):
        raise InputError(f"{folder} holds {start} of {len(captions)} samples; delete the job's folder and run it again.")


def real_rows(cfg: DictConfig, name: str, metric: Any, cache: Path) -> torch.Tensor:
    """A metric's rows of the real images to compare with, evaluation.reference_images at most; computed once.

    None of the data is held back, as experiments.evaluate.Reference does for its floor: published figures are against all.
    As samples they go through the files that cfg.saved_images describes.
    """
    data = hydra.utils.instantiate(cfg.task.data, split=cfg.evaluation.split)
    order = torch.randperm(len(data), generator=generator_for(cfg.evaluation.seed, 2))
    chosen = order[: cfg.evaluation.reference_images]
    settings = metric_settings(cfg)[name]

    def compute() -> dict[str, torch.Tensor]:
        rows = []
        with progress_bar(f"{name}: real images", len(chosen)) as bar:
            for images in subset(data.images, chosen).split(64):
                rows.append(metric.rows(through_files(images, settings["saved_images"]), None))
                bar.advance(len(images))
        return {"rows": torch.cat(rows)}

    data_settings = OmegaConf.to_container(cfg.task.data, resolve=True)
    parts = (cfg.evaluation.split, chosen.tolist(), *data_content(data)[:1])
    found = content_name("real rows", settings, data_settings, *parts)
    return cached_tensors(cache / f"{found}.safetensors", compute)["rows"]


def lacking(cfg: DictConfig, row: dict[str, Any]) -> list[str]:
    """The metrics of cfg.metrics that a row lacks, or has measured in another way than cfg says."""
    measured = row["protocol"].get("metrics", {})
    return [name for name, settings in metric_settings(cfg).items() if measured.get(name) != settings]


def measure_into(
    cfg: DictConfig,
    row: dict[str, Any],
    models: list[str],
    fingerprint: str,
    captions: list[str],
    folder: Path,
    device: str | torch.device,
) -> None:
    """Measures what the row of the job in `folder` lacks of cfg.metrics, over the samples of `models`, and enters it there.

    fingerprint: the teacher's. What could not be had stands in row["metrics_missing"]; a row without either is as it was.
    """
    wanted, names, missing = metric_settings(cfg), lacking(cfg, row), {}
    samples, cache = folder / "samples", Path(cfg.outputs) / "cache"
    for steps, figures in {None: row["models"], **row["by_steps"]}.items():
        changed = cfg if steps is None else OmegaConf.merge(cfg, {"evaluation": {"steps": int(steps)}})
        where = samples if steps is None else samples / f"steps={steps}"
        folders = sample_folders(changed, models, fingerprint, where, cache)
        had = [name for name in names if name not in missing]
        found, absent = measure(changed, had, folders, captions, cache, torch.device(device))
        missing |= absent
        for who, values in found.items():
            figures[who] |= values
    protocol = row["protocol"].get("metrics", {}) | {name: wanted[name] for name in names if name not in missing}
    if protocol:
        row["protocol"]["metrics"] = protocol
    row.pop("metrics_missing", None)
    if missing:
        row["metrics_missing"] = missing
