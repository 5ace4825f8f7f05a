"""Locks between processes, which the system frees when their holder dies."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from common.errors import InputError


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Holds the lock file `path`; says on standard error when `what` is being done by another process, and waits for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print(f"waiting for another process: {what}", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Nobody else writes `folder` meanwhile; InputError when another process does already."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(f"Another process is writing {folder}; when it has ended, this command shows its result.") from None
    try:
        yield
        Path(lock.lock_file).unlink()  # what was to be written is there, whoever comes now finds it
    finally:
        lock.release()
