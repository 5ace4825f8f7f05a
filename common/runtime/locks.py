"""Locks between processes, which the system frees when their holder dies."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from common.errors import InputError
from common.runtime.processes import process_count


def attempted(path: Path) -> FileLock:
    """The lock file `path`, held (is_locked) unless another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    with suppress(Timeout):
        lock.acquire(blocking=False)
    return lock


def held(path: Path, refusal: str) -> FileLock:
    """The lock file `path`, held until it is released or the process ends; InputError(refusal) when another process has it."""
    lock = attempted(path)
    if not lock.is_locked:
        raise InputError(refusal)
    return lock


def awaited(path: Path, what: str) -> FileLock:
    """As `held`, but says on standard error when `what` is being done by another process, and waits for it."""
    lock = attempted(path)
    if not lock.is_locked:
        if process_count() == 1:  # those of one job wait for each other all the time
            print(f"waiting for another process: {what}", file=sys.stderr, flush=True)
        lock.acquire()
    return lock


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Holds the lock file `path`; says on standard error when `what` is being done by another process, and waits for it."""
    lock = awaited(path, what)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def claimed(folder: Path, wait: bool = False) -> Iterator[None]:
    """Nobody else writes `folder` meanwhile; when another process does already, waits for it, or raises InputError."""
    if wait:
        lock = awaited(folder / ".lock", f"{folder} is being written")
    else:
        refusal = f"Another process is writing {folder}; when it has ended, this command shows its result."
        lock = held(folder / ".lock", refusal)
    try:
        yield
        Path(lock.lock_file).unlink()  # what was to be written is there, whoever comes now finds it
    finally:
        lock.release()
