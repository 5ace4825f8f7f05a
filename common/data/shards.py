"""Rows of several columns in files of equal length, mapped rather than read: more of them than memory holds.

A shard is a safetensors file of `rows_per_shard` rows of every column, written whole, with its checksum beside it in the form
of sha256sum (`sha256sum -c *.sha256` checks a folder). Several processes may fill one folder: each computes the shards that
no other is computing.
"""

import hashlib
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from common.errors import InputError
from common.runtime.files import write_atomically
from common.runtime.locks import attempted, locked
from common.runtime.progress import progress_bar
from common.runtime.threads import in_threads

LONG = 2**30  # bytes: checking more than this shows a progress bar


@dataclass(frozen=True)
class Shard:
    """One file of a folder: rows `rows` of the whole."""

    path: Path
    rows: range

    @property
    def checksum(self) -> Path:
        return self.path.with_suffix(".sha256")

    @property
    def lock(self) -> Path:
        return self.path.with_name(f".{self.path.name}.lock")

    def written(self) -> bool:
        return self.path.is_file() and self.checksum.is_file()

    def sound(self) -> bool:
        """Whether the file has the checksum that it was written with."""
        try:
            told = self.checksum.read_text(encoding="utf-8").split()[0]
            with open(self.path, "rb") as handle:
                return hashlib.file_digest(handle, "sha256").hexdigest() == told
        except (OSError, IndexError, ValueError):
            return False


def list_shards(folder: Path, count: int, rows_per_shard: int) -> list[Shard]:
    """The shards of `count` rows in `folder`, whether written or not."""
    starts = range(0, count, rows_per_shard)
    return [
        Shard(folder / f"{number:05d}.safetensors", range(start, min(start + rows_per_shard, count)))
        for number, start in enumerate(starts)
    ]


def unsound(shards: Sequence[Shard], verify: bool) -> list[Shard]:
    """Those that are still to be computed: not written, or with `verify` damaged, which is told in a line each."""
    written = [shard for shard in shards if shard.written()]
    damaged: set[Shard] = set()
    if verify:
        long = sum(shard.path.stat().st_size for shard in written) > LONG
        with progress_bar("checking shards", len(written)) if long else nullcontext() as bar:
            for shard, sound in zip(written, in_threads(Shard.sound, written, None), strict=True):
                if not sound:
                    damaged.add(shard)
                if bar is not None:
                    bar.advance()
    return [shard for shard in shards if shard in damaged or not shard.written()]


def fill_shards(
    waiting: Sequence[Shard],
    compute: Callable[[range], dict[str, torch.Tensor]],
    done: Callable[[int], None] = lambda count: None,
) -> None:
    """Writes those of `waiting` that no other process writes, and waits for the others.

    compute: the columns of some rows; it tells of its own progress. done: told of rows that another process has computed.
    """
    from safetensors.torch import save

    def write(shard: Shard) -> bool:
        if shard.written():
            if shard.sound():
                return False
            print(f"{shard.path} is damaged (its checksum differs): it is computed anew", file=sys.stderr, flush=True)
        shard.checksum.unlink(missing_ok=True)
        columns = {name: column.contiguous().cpu() for name, column in compute(shard.rows).items()}
        content = save(columns)
        write_atomically(shard.path, content)
        line = f"{hashlib.sha256(content).hexdigest()}  {shard.path.name}\n"
        write_atomically(shard.checksum, line.encode())
        return True

    left = list(waiting)
    while left:
        others = []
        for shard in left:
            lock = attempted(shard.lock)
            if not lock.is_locked:
                others.append(shard)
                continue
            try:
                if not write(shard):
                    done(len(shard.rows))
                shard.lock.unlink(missing_ok=True)  # whoever waits for it, or comes now, finds the shard
            finally:
                lock.release()
        left = others
        if left:
            with locked(left[0].lock, f"{left[0].path.parent} is being computed"):
                pass


class ShardedColumn:
    """One column over all shards; column[rows] of a tensor or list of row numbers reads these rows alone.

    Numbers of half precision are given as float32.
    """

    def __init__(self, parts: Sequence[torch.Tensor], rows_per_shard: int):
        self.parts, self.rows_per_shard = parts, rows_per_shard
        self.shape = torch.Size((sum(len(part) for part in parts), *parts[0].shape[1:]))
        self.dtype = torch.float32 if parts[0].dtype in (torch.float16, torch.bfloat16) else parts[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: torch.Tensor | Sequence[int]) -> torch.Tensor:
        rows = torch.as_tensor(rows, dtype=torch.int64)
        found = torch.empty((len(rows), *self.shape[1:]), dtype=self.dtype)
        places = rows // self.rows_per_shard
        for place in places.unique().tolist():
            here = places == place
            found[here] = self.parts[place][rows[here] - place * self.rows_per_shard].to(self.dtype)
        return found


def open_columns(shards: Sequence[Shard]) -> dict[str, ShardedColumn]:
    """The columns of written shards, mapped from their files; InputError naming a damaged file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    parts: dict[str, list[torch.Tensor]] = {}
    for shard in shards:
        try:
            for name, part in load_file(shard.path).items():
                parts.setdefault(name, []).append(part)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{shard.path} is damaged ({error}); delete it and it is computed anew.") from error
    return {name: ShardedColumn(columns, len(shards[0].rows)) for name, columns in parts.items()}
