"""Latents and conditions of the training images, computed once for all jobs on the same teacher and data, and mapped."""

from pathlib import Path
from typing import Any

import torch

from common.data.lazy_images import subset
from common.data.shards import Shard, fill_shards, list_shards, open_columns, unsound
from common.data.teacher_samples import latents_of
from common.errors import InputError
from common.models.latent_diffusion import LatentDiffusion
from common.runtime.collectives import on_first
from common.runtime.content import content_name
from common.runtime.progress import progress_bar
from common.training.batches import MirroredRows, TensorRows
from experiments.shared.job import Job
from experiments.shared.out_of_memory import memory_advice
from experiments.shared.settings import TrainingRowsSettings

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def check_captions(task: str, teacher: LatentDiffusion, data: Any) -> None:
    """InputError when the teacher takes captions and the data of the task has none."""
    if teacher.text_encoder is not None and not hasattr(data, "captions"):
        raise InputError(f"The teacher {teacher.name} takes captions, and the data of task={task} has none.")


def row_shards(job: Job, teacher: LatentDiffusion, folder: Path) -> list[Shard]:
    """The files of the training rows: their folder is named for the teacher, the data and what they hold."""
    settings, count = job.settings.training_rows, len(job.training_data)
    held = {name: getattr(settings, name) for name in ("dtype", "flip", "rows_per_shard")}
    name = content_name("training rows", teacher.fingerprint(), job.training_data_identity, count, held)
    return list_shards(folder / f"rows-{name}", count, settings.rows_per_shard)


def encode_rows(
    settings: TrainingRowsSettings, teacher: LatentDiffusion, data: Any, rows: range, advance: Any
) -> dict[str, torch.Tensor]:
    """Columns of some training rows: `latents`, the conditions of their captions, and with flip `mirrored` latents."""
    latents, mirrored = [], []
    for images in subset(data.images, slice(rows.start, rows.stop), settings.workers).split(settings.batch_size):
        latents.append(latents_of(teacher, images, settings.batch_size))
        check_latents(latents[0], teacher)
        if settings.flip:
            mirrored.append(teacher.encode_images(images[:].flip(3), settings.batch_size))
        advance(len(images))
    columns = {"latents": torch.cat(latents), **({"mirrored": torch.cat(mirrored)} if settings.flip else {})}
    if teacher.text_encoder is not None:
        columns |= teacher.encode_captions(list(data.captions[rows.start : rows.stop]))
    return {name: stored(column, settings.dtype, name) for name, column in columns.items()}


def stored(column: torch.Tensor, dtype: str, name: str) -> torch.Tensor:
    """The column as it is kept: its real numbers in `dtype`; InputError when they are out of its range."""
    if not column.is_floating_point():
        return column
    kept = column.to(DTYPES[dtype])
    if not kept.isfinite().all():
        largest = column.abs().max().item()
        raise InputError(f"training_rows.dtype={dtype} cannot hold {name} of up to {largest:g}: give bfloat16 or float32.")
    return kept


def check_latents(latents: torch.Tensor, teacher: LatentDiffusion) -> None:
    """InputError when images become latents of another size than the teacher's."""
    if tuple(latents.shape[1:]) != teacher.latent_shape:
        made, wanted = (" x ".join(map(str, shape)) for shape in (latents.shape[1:], teacher.latent_shape))
        size = " x ".join(map(str, teacher.image_size))
        raise InputError(f"The data set's images become {made} latents, the teacher's are {wanted}: give images of {size}.")


def training_rows(job: Job, teacher: LatentDiffusion, folder: Path) -> TensorRows:
    """Latents and conditions of the training images, by training_rows in shards below `folder` (common/data/shards.py).

    What an earlier or another running process has computed is kept. With flip, a batch holds the latents of the mirrored image
    in half of the cases (BK-SDM's random horizontal flip), and the captions' conditions are stored once.
    """
    data, settings = job.training_data, job.settings.training_rows
    check_captions(job.settings.task.name, teacher, data)
    shards = row_shards(job, teacher, folder)
    waiting = on_first(lambda: unsound(shards, settings.verify))
    if waiting:
        left = sum(len(shard.rows) for shard in waiting)
        bar_of_all = progress_bar("encoding images", len(data), done=len(data) - left)
        with memory_advice("encoding", job.settings), bar_of_all as bar:
            fill_shards(waiting, lambda rows: encode_rows(settings, teacher, data, rows, bar.advance), bar.advance)
    columns = open_columns(shards)
    if settings.flip:
        return MirroredRows(columns.pop("mirrored"), job.settings.seed, **columns)
    return TensorRows(**columns)
