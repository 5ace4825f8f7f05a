"""A job's folder, which one command at a time works in."""

from collections.abc import Callable
from pathlib import Path

from common.runtime.collectives import first_enters, on_first
from common.runtime.files import check_writable
from common.runtime.locks import claimed
from experiments.shared.row import Row
from experiments.sweeps.sweep import sweep_folder


def found_or_made(folder: Path, find: Callable[[], Row | None], ready: Callable[[], None], make: Callable[[], Row]) -> Row:
    """The row that `find` finds in `folder`, or else that of `make`, which no other job's process runs there meanwhile.

    `ready` is called before: what it refuses is told before any wait for another process. InputError when another one does
    already; a job of a sweep waits for its row instead. The processes of one job find it, or make it, together.
    """
    row = on_first(find)
    if row is None:
        on_first(lambda: check_writable(folder, "outputs"))
        ready()
        with first_enters(lambda: claimed(folder, wait=sweep_folder() is not None)):
            row = on_first(find) or make()
    return row
