"""The papers' metrics over the samples that a job keeps on disk: FID, KID, IS, CLIP score, PickScore, HPSv2, FAD.

`metrics` of the settings names them; each has

    needs_real                    whether it compares with rows of real images
    load(device)                  its network; InputError without a package or weights
    rows(images, captions)        features or scores of a batch of uint8 images, as many rows of each
    rows_of(batches)              instead, of all batches of (images, captions) in one call (common/metrics/external.py)
    figures(rows, real, seed)     numbers by the name of their column, of the rows that are asked for by their numbers

They are no part of a job's id: they change nothing that the job made, and can be asked for later. One that cannot be had is
told in a line, and the others and the row are not lost.
"""

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
import torch

from common.errors import InputError
from common.metrics.jackknife import estimate
from common.metrics.jpeg_round_trip import through_files
from common.runtime.content import content_name
from common.runtime.progress import under_way
from common.runtime.seeding import generator_for
from experiments.evaluation.samples import captions_of, sample_folders
from experiments.shared.identity import file_contents, identified
from experiments.shared.job import Job
from experiments.shared.row import Row, with_intervals
from experiments.shared.settings import Settings
from experiments.shared.tensor_cache import cached_batches, cached_tensors, load_tensors

Figures = dict[str, dict[str, float]]
REAL_IMAGES_AT_ONCE = 64  # in one file


def metric_settings(settings: Settings) -> dict[str, dict[str, Any]]:
    """What each metric of the configuration depends on beside the samples, by its name.

    Where settings name weights or statistics by local files, `content` tells what these hold.
    """
    saved = None if settings.saved_images is None else asdict(settings.saved_images)
    return {
        name: {**metric, "saved_images": saved, **({"content": held} if (held := file_contents(metric)) else {})}
        for name, metric in settings.metrics.items()
    }


def comparable(settings: dict[str, Any]) -> Any:
    """A metric's settings as they are compared: what local files hold, and not where they lie."""
    held = settings.get("content", {})
    return identified({name: value for name, value in settings.items() if name not in held})


def measure_metrics(job: Job, names: list[str], folders: Mapping[str, Path]) -> tuple[Figures, dict[str, str]]:
    """Figures by model of the metrics `names`, and why others of them are missing, which is told on standard error as well.

    folders: of each model, the batches that experiments.evaluation.samples.sampled_batches keeps.
    """
    figures: Figures = {who: {} for who in folders}
    missing: dict[str, str] = {}
    for name in names:
        try:
            found = one_metric(job, name, folders)
        except InputError as error:
            missing[name] = str(error)
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        for who, values in found.items():
            figures[who] |= values
    return figures, missing


def one_metric(job: Job, name: str, folders: Mapping[str, Path]) -> Figures:
    """Figures of one metric by model."""
    metric = hydra.utils.instantiate(job.settings.metrics[name])
    metric.load(job.device)
    real = real_rows(job, name, metric) if metric.needs_real else None
    count = len(job.prompts.captions)
    figures = {}
    for who, folder in folders.items():
        rows = sample_rows(job, name, metric, who, folder)
        of_rows = metric.figures(rows, real, job.settings.evaluation.seed)
        numbers = torch.arange(len(rows)).view(count, -1)
        with under_way(f"{name}: {who}"):
            figures[who] = with_intervals(estimate(lambda kept: of_rows(numbers[kept].flatten()), count))  # noqa: B023
    return figures


def sample_rows(job: Job, name: str, metric: Any, who: str, folder: Path) -> torch.Tensor:
    """A metric's rows of the samples in `folder`, which are as many as the prompts.

    Kept beside the samples: what was interrupted goes on, and the teacher's are measured once for all jobs. InputError where a
    sample is not there any more, or where they were drawn of other captions.
    """
    captions, captioned = job.prompts.captions, job.prompts.captioned
    if captioned:
        captions_of(folder, captions)
    settings = metric_settings(job.settings)[name]

    def drawn(rows: range) -> tuple[torch.Tensor, list[str] | None]:
        path = folder / f"{rows.start:06d}.safetensors"
        images = load_tensors(path)["images"] if path.is_file() else ()
        if len(images) != len(rows):
            raise InputError(f"{path} does not hold {len(rows)} samples; delete the job's folder and run it again.")
        return through_files(images, settings["saved_images"]), captions[rows.start : rows.stop] if captioned else None

    kept = folder / content_name("rows", comparable(settings))
    count, batch_size = len(captions), job.settings.evaluation.batch_size
    if hasattr(metric, "rows_of"):
        starts = range(0, count, batch_size)
        batches = (drawn(range(start, min(start + batch_size, count))) for start in starts)
        return cached_tensors(kept / "all.safetensors", lambda: {"rows": metric.rows_of(batches)})["rows"]
    found = cached_batches(f"{name}: {who}", kept, count, batch_size, lambda rows: {"rows": metric.rows(*drawn(rows))})
    return torch.cat([batch["rows"] for _, batch in found])


def real_rows(job: Job, name: str, metric: Any) -> torch.Tensor:
    """A metric's rows of the real images to compare with, evaluation.reference_images at most; computed once.

    None of the data is held back, as experiments.evaluation.real_features.Reference does for its floor: published figures are
    against all. As samples they go through the files that saved_images describes.
    """
    data, evaluation = job.evaluation_data, job.settings.evaluation
    order = torch.randperm(len(data), generator=generator_for(evaluation.seed, 2))
    chosen = order[: evaluation.reference_images]
    settings = metric_settings(job.settings)[name]

    def compute(rows: range) -> dict[str, torch.Tensor]:
        images = data.images[chosen[rows.start : rows.stop]]
        return {"rows": metric.rows(through_files(images, settings["saved_images"]), None)}

    kept = content_name("real rows", comparable(settings), job.data_identity, evaluation.split, chosen.tolist())
    batches = cached_batches(f"{name}: real images", job.cache / kept, len(chosen), REAL_IMAGES_AT_ONCE, compute)
    return torch.cat([batch["rows"] for _, batch in batches])


def lacking(settings: Settings, row: Row) -> list[str]:
    """The metrics of the settings that a row lacks, or has measured in another way than they say."""
    measured = row["protocol"].get("metrics", {})
    wanted = metric_settings(settings)
    return [name for name in wanted if name not in measured or comparable(measured[name]) != comparable(wanted[name])]


def measure_into(job: Job, row: Row, fingerprint: str) -> None:
    """Measures what the job's row lacks of the settings' metrics, over the samples of each of its models, and enters it there.

    fingerprint: the teacher's. What could not be had stands in row["metrics_missing"]; a row without either is as it was.
    """
    wanted, names, missing = metric_settings(job.settings), lacking(job.settings, row), {}
    samples = job.folder / "samples"
    for steps, figures in {None: row["models"], **row["by_steps"]}.items():
        changed = job if steps is None else job.with_evaluation(steps=int(steps))
        where = samples if steps is None else samples / f"steps={steps}"
        folders = sample_folders(changed, [who for who in figures if who != "real"], fingerprint, where)
        had = [name for name in names if name not in missing]
        found, absent = measure_metrics(changed, had, folders)
        missing |= absent
        for who, values in found.items():
            figures[who] |= values
    protocol = row["protocol"].get("metrics", {}) | {name: wanted[name] for name in names if name not in missing}
    if protocol:
        row["protocol"]["metrics"] = protocol
    row.pop("metrics_missing", None)
    if missing:
        row["metrics_missing"] = missing
