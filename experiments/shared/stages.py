"""The stages of a job: how long each takes, and what to do where its memory does not suffice."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from common.runtime.progress import under_way
from experiments.shared.out_of_memory import memory_advice
from experiments.shared.settings import Settings


@contextmanager
def stage(name: str, seconds: dict[str, float], settings: Settings) -> Iterator[None]:
    """Adds the time spent inside to seconds[name], and tells of the stage in a log.

    InputError with advice where memory does not suffice.
    """
    started = time.perf_counter()
    with memory_advice(name, settings), under_way(f"stage: {name}"):
        yield
    seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - started, 1)
