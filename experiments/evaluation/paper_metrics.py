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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf

from common.errors import InputError
from common.metrics.jpeg_round_trip import through_files
from common.runtime.content import content_name
from common.runtime.progress import progress_bar
from common.runtime.seeding import generator_for
from experiments.evaluation.samples import captions_of, sample_folders
from experiments.shared.identity import as_dict, data_identity, file_contents, identified
from experiments.shared.tensor_cache import cache_folder, cached_batches, load_tensors

Figures = dict[str, dict[str, float]]
REAL_IMAGES_AT_ONCE = 64  # in one file


def metric_settings(cfg: DictConfig) -> dict[str, dict[str, Any]]:
    """What each metric of the configuration depends on beside the samples, by its name.

    Where settings name weights or statistics by local files, `content` tells what these hold.
    """
    saved = as_dict(cfg.saved_images) if cfg.saved_images else None
    return {
        name: {**settings, "saved_images": saved, **({"content": held} if (held := file_contents(settings)) else {})}
        for name, settings in as_dict(cfg.metrics).items()
    }


def told_apart(settings: dict[str, Any]) -> Any:
    """A metric's settings as they are compared: what local files hold, and not where they lie."""
    held = settings.get("content", {})
    return identified({name: value for name, value in settings.items() if name not in held})


def measure(
    cfg: DictConfig, names: list[str], folders: Mapping[str, Path], captions: list[str], cache: Path, device: torch.device
) -> tuple[Figures, dict[str, str]]:
    """Figures by model of the metrics `names`, and why others of them are missing, which is told on standard error as well.

    folders: of each model, the batches that experiments.evaluation.samples.sampled_batches keeps. captions: of all samples, in
    order.
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
    real = real_rows(cfg, name, metric, cache) if metric.needs_real else None
    rows = {who: sample_rows(cfg, name, metric, who, folder, captions) for who, folder in folders.items()}
    return {who: metric.figures(found, real, cfg.evaluation.seed) for who, found in rows.items()}


def sample_rows(cfg: DictConfig, name: str, metric: Any, who: str, folder: Path, captions: list[str]) -> torch.Tensor:
    """A metric's rows of the samples in `folder`, which are as many as the captions; empty ones are none.

    Kept beside the samples: what was interrupted goes on, and the teacher's are measured once for all jobs. InputError where a
    sample is not there any more, or where they were drawn of other captions.
    """
    captioned = any(captions)
    if captioned:
        captions_of(folder, captions)
    settings = metric_settings(cfg)[name]

    def compute(rows: range) -> dict[str, torch.Tensor]:
        path = folder / f"{rows.start:06d}.safetensors"
        images = load_tensors(path)["images"] if path.is_file() else ()
        if len(images) != len(rows):
            raise InputError(f"{path} does not hold {len(rows)} samples; delete the job's folder and run it again.")
        images = through_files(images, settings["saved_images"])
        return {"rows": metric.rows(images, captions[rows.start : rows.stop] if captioned else None)}

    kept = folder / content_name("rows", told_apart(settings))
    return rows_in_batches(f"{name}: {who}", kept, len(captions), cfg.evaluation.batch_size, compute)


def real_rows(cfg: DictConfig, name: str, metric: Any, cache: Path) -> torch.Tensor:
    """A metric's rows of the real images to compare with, evaluation.reference_images at most; computed once.

    None of the data is held back, as experiments.evaluation.real_features.Reference does for its floor: published figures are
    against all. As samples they go through the files that cfg.saved_images describes.
    """
    data = hydra.utils.instantiate(cfg.task.data, split=cfg.evaluation.split)
    order = torch.randperm(len(data), generator=generator_for(cfg.evaluation.seed, 2))
    chosen = order[: cfg.evaluation.reference_images]
    settings = metric_settings(cfg)[name]

    def compute(rows: range) -> dict[str, torch.Tensor]:
        images = data.images[chosen[rows.start : rows.stop]]
        return {"rows": metric.rows(through_files(images, settings["saved_images"]), None)}

    kept = cache / content_name("real rows", told_apart(settings), data_identity(cfg), cfg.evaluation.split, chosen.tolist())
    return rows_in_batches(f"{name}: real images", kept, len(chosen), REAL_IMAGES_AT_ONCE, compute)


def rows_in_batches(
    what: str, kept: Path, count: int, batch_size: int, compute: Callable[[range], dict[str, torch.Tensor]]
) -> torch.Tensor:
    """A metric's rows of `count` images, under a bar; batches are in the folder `kept`, or computed and written there."""
    rows = []
    with progress_bar(what, count) as bar:
        for _, batch in cached_batches(kept, count, batch_size, compute):
            rows.append(batch["rows"])
            bar.advance(min(batch_size, count - batch_size * (len(rows) - 1)))
    return torch.cat(rows)


def lacking(cfg: DictConfig, row: dict[str, Any]) -> list[str]:
    """The metrics of cfg.metrics that a row lacks, or has measured in another way than cfg says."""
    measured = row["protocol"].get("metrics", {})
    wanted = metric_settings(cfg)
    return [name for name in wanted if name not in measured or told_apart(measured[name]) != told_apart(wanted[name])]


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
    samples, cache = folder / "samples", cache_folder(cfg)
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
