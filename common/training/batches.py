"""Which samples go into which batch, as a function of the seed and the batch number alone.

Nothing is remembered between batches, so a training run that is killed after any batch and resumed at the next one
sees exactly what the uninterrupted run would have seen, whatever the number of workers.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from common.errors import InputError
from common.runtime.processes import process_count, rank
from common.runtime.seeding import generator_for

MIRROR, OTHER = 5, 6  # set the coins of MirroredRows and of OtherConditions apart from other numbers of the same seed
OWN = "own_condition"


class SeededBatches(Sampler[list[tuple[int, int]]]):
    """Batch b holds positions b*batch_size ... of an endless stream of seeded permutations of the data set.

    Yields lists of (sample index, position in the stream) for the batches from `start` to `stop` - 1. part (i, n): of each
    batch the i-th of n equal parts, for the i-th of n processes.
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int, stop: int, start: int = 0, part: tuple[int, int] = (0, 1)):
        if num_samples < 1:
            raise InputError("The training set is empty.")
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.start, self.stop = start, stop
        rows = batch_size // part[1]
        self.own = slice(part[0] * rows, (part[0] + 1) * rows)

    def __len__(self) -> int:
        return self.stop

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, []
        for batch in range(self.start, self.stop):
            pairs = []
            for position in range(batch * self.batch_size, (batch + 1) * self.batch_size):
                if position // self.num_samples != epoch:
                    epoch = position // self.num_samples
                    order = torch.randperm(self.num_samples, generator=generator_for(self.seed, epoch)).tolist()
                pairs.append((order[position % self.num_samples], position))
            yield pairs[self.own]


class TensorRows(Dataset):
    """Columns of equal length; a batch is a dictionary of their rows and of the stream's `position`.

    columns: tensors, or what gives a tensor for column[rows]: common.data.shards.ShardedColumn,
    common.data.lazy_images.LazyImages.
    """

    def __init__(self, **columns: Any):
        self.columns = columns
        self.count = len(next(iter(columns.values())))

    def __len__(self) -> int:
        return self.count

    def __getitems__(self, pairs: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
        rows = torch.tensor([index for index, _ in pairs])
        batch = {name: column[rows] for name, column in self.columns.items()}
        return batch | {"position": torch.tensor([position for _, position in pairs])}


class MirroredRows(TensorRows):
    """Rows whose `latents` are those of the mirrored image in half of the visits, by a coin seeded by (seed, position)."""

    def __init__(self, mirrored: Any, seed: int, **columns: Any):
        super().__init__(**columns)
        self.mirrored, self.seed = mirrored, seed

    def __getitems__(self, pairs: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
        batch = super().__getitems__(pairs)
        coins = torch.cat([torch.rand(1, generator=generator_for(self.seed, MIRROR, position)) for _, position in pairs])
        rows = torch.tensor([index for index, _ in pairs])
        batch["latents"][coins < 0.5] = self.mirrored[rows[coins < 0.5]]
        return batch


class OtherConditions(TensorRows):
    """Rows of which a `share` of the visits has the conditions of another row, drawn by (seed, position).

    Random conditioning (Kim et al. 2025, arXiv 2504.02011), whose share depends on the timestep and is the same for all here:
    a teacher says of any noisy latents what they should become under any prompt, so that a student learns of more prompts than
    latents were drawn of. A column `own_condition` (batch,) tells which rows have their own.
    """

    def __init__(self, rows: TensorRows, share: float, seed: int):
        super().__init__(**rows.columns)
        self.rows, self.share, self.seed = rows, share, seed

    def __getitems__(self, pairs: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
        batch = self.rows.__getitems__(pairs)
        own, others = [], []
        for index, position in pairs:
            generator = generator_for(self.seed, OTHER, position)
            own.append(torch.rand((), generator=generator).item() >= self.share)
            other = int(torch.randint(len(self), (), generator=generator))
            others.append(index if own[-1] else other)
        chosen = torch.tensor(others)
        batch |= {name: column[chosen] for name, column in self.columns.items() if name != "latents"}
        return batch | {OWN: torch.tensor(own)}


def training_loader(rows: TensorRows, batch_size: int, seed: int, batches: int, start: int = 0) -> DataLoader:
    """The stream of SeededBatches over `rows`, from batch `start` to `batches` - 1; of each the part of this process."""
    sampler = SeededBatches(len(rows), batch_size, seed, batches, start, (rank(), process_count()))
    return DataLoader(rows, batch_sampler=sampler, collate_fn=lambda batch: batch)
