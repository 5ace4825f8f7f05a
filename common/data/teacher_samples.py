"""What a teacher draws itself, in place of a data set: for who has a checkpoint and not what it was trained on.

The latents are sampled once, in shards (common/data/shards.py), and decoded where images are asked for. A student is trained
on the latents as they were drawn.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from common.data.captions import read_prompts
from common.data.shards import ShardedColumn, fill_shards, list_shards, open_columns, unsound
from common.data.splits import TEST_EVERY, CaptionedImages, Images, split_rows
from common.diffusion.images import with_channels
from common.errors import InputError
from common.models.latent_diffusion import LatentDiffusion
from common.runtime.collectives import on_first
from common.runtime.content import content_name, located
from common.runtime.files import check_room
from common.runtime.progress import progress_bar
from common.runtime.seeding import mix_seed
from common.settings import AtLeastOne, GuidanceScale, Seed

SEEDS = {"train": 2**30, "test": 2**30 + 1}  # apart from those of other noise of the same seed


class DrawnImages:
    """Stands in for a uint8 tensor (count, 1 or 3, height, width): an index decodes the latents that it names.

    draw: gives the latents of all rows, and is called when the first is asked for.
    """

    dtype = torch.uint8

    def __init__(self, teacher: LatentDiffusion, draw: Callable[[], ShardedColumn], rows: Sequence[int], channels: int):
        self.teacher, self.draw, self.channels = teacher, draw, channels
        self.rows = np.asarray(rows, np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.rows), self.channels, *self.teacher.image_size))

    def numel(self) -> int:
        return self.shape.numel()

    def latents(self) -> torch.Tensor:
        """(count, *latent_shape) as they were drawn, on the CPU."""
        return self.draw()[torch.from_numpy(self.rows)]

    def select(self, chosen: Any, workers: int | None = None) -> "DrawnImages":
        """The chosen images (indices or a slice), none of them decoded yet."""
        chosen = chosen if isinstance(chosen, slice) else np.asarray(chosen, np.int64)
        return DrawnImages(self.teacher, self.draw, self.rows[chosen], self.channels)

    def __getitem__(self, chosen: Any) -> torch.Tensor:
        """(channels, height, width) of an integer, else (chosen, channels, height, width)."""
        if isinstance(chosen, int | np.integer):
            return self[[chosen]][0]
        return with_channels(self.teacher.decode_latents(self.select(chosen).latents()), self.channels)

    def split(self, batch_size: int) -> Iterator["DrawnImages"]:
        """The images in batches, not decoded yet."""
        return (self.select(slice(start, start + batch_size)) for start in range(0, len(self), batch_size))


@dataclass(frozen=True)
class TeacherSamples:
    """Samples that a teacher is to draw of a split, "train" or "test": image i from a seed of its own.

    prompts: a file of prompts (docs/your_files.md), which are taken in turn; every tenth different one is kept for "test".
    None for a teacher that takes none. images, held_out: how many of "train" and of "test". steps, guidance_scale: of the
    teacher's own scheduler. InputError for prompts that cannot be read, or of which there are fewer than ten different ones.
    """

    split: str
    prompts: str | None
    images: AtLeastOne
    held_out: AtLeastOne
    steps: AtLeastOne
    guidance_scale: GuidanceScale
    batch_size: AtLeastOne
    rows_per_shard: AtLeastOne
    seed: Seed
    names: ClassVar[None] = None  # of what is drawn

    def __len__(self) -> int:
        return self.images if self.split == "train" else self.held_out

    @cached_property
    def captions(self) -> list[str]:
        """One prompt for each image, "" without prompts."""
        if self.prompts is None:
            return [""] * len(self)
        found = list(dict.fromkeys(read_prompts(located(self.prompts) or Path(self.prompts), "task.data.prompts")[0]))
        if len(found) < TEST_EVERY:
            raise InputError(
                f"task.data.prompts={self.prompts} holds {len(found)} different prompts: a student learns what it is shown; "
                f"give {TEST_EVERY} at least, better thousands."
            )
        own = [found[row] for row in split_rows(len(found), self.split)]
        return [own[row % len(own)] for row in range(len(self))]

    def drawn_by(
        self,
        teacher: LatentDiffusion,
        folder: Path,
        channels: int,
        autocast: Callable[[], AbstractContextManager],
        note: str = "",
    ) -> Images | CaptionedImages:
        """The samples as a data set, kept below `folder`; nothing is drawn before it is asked for.

        channels: of the images, 1 or 3. autocast: what the denoiser computes in, and `note` what sets files of it apart.
        InputError where the teacher takes prompts and there are none, or the other way round, and for a disk too small.
        """
        captioned = teacher.text_encoder is not None
        if captioned != (self.prompts is not None):
            takes, wanted = ("takes", "a file of prompts") if captioned else ("takes no", "null")
            raise InputError(f"task.data.prompts={self.prompts}: the teacher {teacher.name} {takes} prompts; give {wanted}.")
        draw = cache(lambda: self._drawn(teacher, folder, autocast, note))  # its files are verified once
        images = DrawnImages(teacher, draw, range(len(self)), channels)
        return CaptionedImages(images, self.captions) if captioned else Images(images)

    def _drawn(
        self, teacher: LatentDiffusion, folder: Path, autocast: Callable[[], AbstractContextManager], note: str
    ) -> ShardedColumn:
        """The latents of all images: those that no earlier or other process has drawn are drawn now."""
        protocol = [self.split, self.captions, self.steps, self.guidance_scale, self.seed, self.rows_per_shard]
        name = content_name("teacher samples", teacher.fingerprint(), protocol)
        shards = list_shards(folder / f"teacher-samples-{name}{note}", len(self), self.rows_per_shard)
        waiting = on_first(lambda: unsound(shards, verify=True))
        left = sum(len(shard.rows) for shard in waiting)
        if waiting:
            on_first(lambda: check_room(folder, 4 * left * int(np.prod(teacher.latent_shape)), "the teacher's samples"))

            def draw(rows: range) -> dict[str, torch.Tensor]:
                latents = []
                for start in range(rows.start, rows.stop, self.batch_size):
                    own = range(start, min(start + self.batch_size, rows.stop))
                    seeds = [mix_seed(self.seed, SEEDS[self.split], row) for row in own]
                    captions = self.captions[own.start : own.stop]
                    with autocast():
                        latents.append(
                            teacher.sample(seeds, captions, self.steps, self.guidance_scale, self.batch_size).float()
                        )
                    bar.advance(len(own))
                return {"latents": torch.cat(latents), "guidance_scale": torch.full((len(rows),), float(self.guidance_scale))}

            with progress_bar(f"teacher's samples, {self.split}", len(self), done=len(self) - left) as bar:
                fill_shards(waiting, draw, bar.advance)
        return open_columns(shards)["latents"]


def rows_apart(
    captions: Sequence[str] | None, total: int, count: int, generator: torch.Generator
) -> tuple[list[int], list[int]]:
    """A draw of `count` rows (of half of all at most) to be held back, and the others, which have none of their captions.

    captions: of each of the `total` rows. Where several rows have one caption, one of them is held back and the others are
    left out; without captions, or with a single one for all, no more than the rows themselves are apart.
    """
    order = torch.randperm(total, generator=generator).tolist()
    if captions is None or len(set(captions)) < 2:
        return order[: min(count, total // 2)], order[min(count, total // 2) :]
    first = {captions[row]: row for row in reversed(order)}  # of each caption the row that comes first
    own = [row for row in order if first[captions[row]] == row]
    held = own[: min(count, len(own) // 2)]
    gone = {captions[row] for row in held}
    return held, [row for row in order if captions[row] not in gone]


def latents_of(teacher: LatentDiffusion, images: Any, batch_size: int = 64) -> torch.Tensor:
    """Latents (count, *latent_shape) on the CPU: as the teacher of this autoencoder drew them, else of encoded images."""
    if isinstance(images, DrawnImages) and images.teacher.autoencoder is teacher.autoencoder:
        return images.latents()
    return teacher.encode_images(images[:], batch_size)
