"""The processor cores of this process, and work that is shared out to threads on them."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_threads(function: Callable[[Item], Result], items: Iterable[Item], workers: int | None) -> Iterator[Result]:
    """function(item) of each item in order; Pillow, zlib, hashlib and PyTorch let other threads run while they work.

    workers: threads; None for one a core.
    """
    workers, items = workers or cores(), iter(items)
    with ThreadPoolExecutor(workers) as pool:
        while window := list(islice(items, 64 * workers)):  # not millions of waiting calls at once
            yield from pool.map(function, window)
