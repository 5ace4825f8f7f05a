"""One look for every long piece of work: what is being done, how far it is, and the time left."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from common.console import PlainConsole
from common.processes import is_first
from common.shown_text import one_line


class ProgressCounter:
    """Counts finished units of one task; `note` shows a short figure beside the bar (a loss, say)."""

    def __init__(self, progress: Progress, task: int):
        self.progress, self.task = progress, task

    def advance(self, units: int = 1, note: str | None = None) -> None:
        fields = {} if note is None else {"note": note}
        self.progress.update(self.task, advance=units, **fields)

    def reach(self, units: int) -> None:
        """`units` in all are finished."""
        self.progress.update(self.task, completed=units)


@contextmanager
def progress_bar(description: str, total: int, done: int = 0) -> Iterator[ProgressCounter]:
    """A bar on standard error, fitting 80 columns; without a terminal only its last state is printed.

    Of several processes that run a job together only the first one shows it.
    """
    console = PlainConsole(stderr=True, quiet=not is_first())
    columns = [
        TextColumn("{task.description:<24.24}", markup=False),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}", markup=False),
    ]
    with Progress(*columns, console=console, refresh_per_second=2) as progress:
        yield ProgressCounter(progress, progress.add_task(one_line(description), total=total, completed=done, note=""))
