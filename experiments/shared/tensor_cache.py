"""Tensors that several jobs share, computed once and written whole or not at all."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from common.errors import InputError
from common.runtime.files import write_atomically
from common.runtime.locks import attempted, locked
from common.runtime.progress import progress_bar


def cached_tensors(path: Path, compute: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The tensors in `path`, computed and written when it is not there; InputError naming a damaged file.

    Of several processes that need them at the same time one computes, and the others wait.
    """
    written(path, compute)
    return load_tensors(path)


def written(path: Path, compute: Callable[[], dict[str, torch.Tensor]]) -> None:
    """Computes and writes `path` if it is not there, or waits for who does."""
    if not path.is_file():
        with locked(lock_of(path), f"{path} is being computed"):
            fill(path, compute)


def lock_of(path: Path) -> Path:
    """The lock file beside a cache file."""
    return path.with_name(f".{path.name}.lock")


def fill(path: Path, compute: Callable[[], dict[str, torch.Tensor]]) -> None:
    """Computes and writes `path` if it is not there; for the holder of its lock."""
    from safetensors.torch import save

    if not path.is_file():
        write_atomically(path, save({name: value.contiguous().cpu() for name, value in compute().items()}))
    lock_of(path).unlink(missing_ok=True)  # whoever waits for it, or comes now, finds the tensors


def cached_batches(
    what: str, folder: Path, count: int, batch_size: int, compute: Callable[[range], dict[str, torch.Tensor]], read: bool = True
) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """File name in `folder` and tensors of each batch of `count` rows, in order: compute(rows), where it is not there yet.

    what: is done, for the progress. read: False leaves the tensors out, for who only helps to compute them.

    Processes that need them at the same time, of one job or of several, share the batches out: while another one computes
    what comes next, this one computes those further on that nobody has begun.
    """
    batches = {
        folder / f"{start:06d}.safetensors": range(start, min(start + batch_size, count))
        for start in range(0, count, batch_size)
    }
    paths = list(batches)

    def begun_elsewhere(path: Path) -> bool:
        """Whether another process is computing it; else it is there afterwards."""
        if path.is_file():
            return False
        lock = attempted(lock_of(path))
        if not lock.is_locked:
            return True
        try:
            fill(path, partial(compute, batches[path]))
        finally:
            lock.release()
        return False

    with progress_bar(what, count) as bar:
        for place, path in enumerate(paths):
            if begun_elsewhere(path):
                for later in paths[place + 1 :]:
                    if path.is_file():
                        break
                    begun_elsewhere(later)
            written(path, partial(compute, batches[path]))
            yield path.name, load_tensors(path) if read else {}
            bar.advance(len(batches[path]))


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors in `path`; InputError naming a damaged file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"The cache {path} is damaged ({error}); delete it and it is computed anew.") from error
