"""One look for every long piece of work: what is being done, how far it is, how fast, and the time left.

On a terminal a bar; elsewhere lines of a log. Of several processes that run a job together only the first one shows any.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from common.runtime.processes import is_first
from common.shown_text import one_line

EVERY = 30.0  # seconds: so often a log has a line at least


class Counter(Protocol):
    """Counts finished units of one piece of work."""

    def advance(self, units: int = 1, note: str | None = None) -> None:
        """`units` more are finished; `note` is a short figure to show beside them (a loss, say)."""

    def reach(self, units: int) -> None:
        """`units` in all are finished."""


class Bar:
    """A Counter on a terminal, of a rich.progress.Progress."""

    def __init__(self, progress: Any, task: int):
        self.progress, self.task = progress, task

    def advance(self, units: int = 1, note: str | None = None) -> None:
        fields = {} if note is None else {"note": note}
        self.progress.update(self.task, advance=units, **fields)

    def reach(self, units: int) -> None:
        self.progress.update(self.task, completed=units)


@dataclass(eq=False)
class Work:
    """A Counter in a log. total: None for what has no units."""

    log: "Log"
    description: str
    total: int | None
    done: int = 0
    note: str = ""

    def __post_init__(self) -> None:
        self.began, self.before = self.log.clock(), self.done

    def advance(self, units: int = 1, note: str | None = None) -> None:
        self.done += units
        if note is not None:
            self.note = one_line(note)
        self.log.tick()

    def reach(self, units: int) -> None:
        self.done = units
        self.log.tick()

    def begin(self) -> str:
        """What begins, in one line."""
        return self.description if self.total is None else f"{self.description}: {self.done} of {self.total}"

    def state(self) -> str:
        """How far it is, in one line."""
        elapsed = self.log.clock() - self.began
        if self.total is None:
            told = [f"{self.description}: {clock_time(elapsed)} so far"]
        else:
            told = [f"{self.description}: {self.done} of {self.total}"]
            made = self.done - self.before
            if made and elapsed:
                each = elapsed / made
                told.append(f"{1 / each:.3g} a second" if each < 1 else f"{each:.3g} s each")
                told.append(f"{clock_time(each * (self.total - self.done))} left")
        return ", ".join([*told, *([self.note] if self.note else [])])

    def end(self) -> str:
        """What it came to, in one line."""
        count = "" if self.total is None else f"{self.done} of {self.total} "
        note = f", {self.note}" if self.note else ""
        return f"{self.description}: {count}done in {clock_time(self.log.clock() - self.began)}{note}"


class Log:
    """What is under way, in plain lines: one as a work begins, one as it ends, and one at least every EVERY seconds.

    clock: seconds since any time; write: takes a line without its end.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, write: Callable[[str], None] | None = None):
        self.clock, self.write = clock, write or to_standard_error
        self.under_way: list[Work] = []
        self.lock = threading.RLock()
        self.told = clock()

    def tell(self, line: str) -> None:
        self.write(line)
        self.told = self.clock()

    def tick(self) -> None:
        """Tells how far the innermost work is, when no line has come for EVERY seconds."""
        with self.lock:
            if self.under_way and self.clock() - self.told >= EVERY:
                self.tell(self.under_way[-1].state())

    @contextmanager
    def work(self, description: str, total: int | None = None, done: int = 0) -> Iterator[Work]:
        """A piece of work, under way inside."""
        work = Work(self, one_line(description), total, done)
        with self.lock:
            self.tell(work.begin())
            self.under_way.append(work)
        try:
            yield work
        finally:
            with self.lock:
                self.under_way.remove(work)
        with self.lock:
            self.tell(work.end())


@contextmanager
def pulse(log: Log) -> Iterator[None]:
    """Ticks beside the work inside, which may say nothing for long."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(1.0):
            log.tick()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def clock_time(seconds: float) -> str:
    """Seconds as 0:07, 12:30 or 3:05:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def to_standard_error(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


LOG = Log()


@contextmanager
def logged_progress(description: str, total: int | None = None, done: int = 0) -> Iterator[Work]:
    """As Log.work, with a pulse around the outermost work; only the first of several processes writes."""
    log = LOG if is_first() else Log(write=lambda line: None)
    if log.under_way or not is_first():
        with log.work(description, total, done) as work:
            yield work
    else:
        with pulse(log), log.work(description, total, done) as work:
            yield work


@contextmanager
def under_way(description: str) -> Iterator[None]:
    """Work without units, which a log tells of; on a terminal it shows nothing of its own."""
    if sys.stderr.isatty():
        yield
        return
    with logged_progress(description):
        yield


@contextmanager
def progress_bar(description: str, total: int, done: int = 0) -> Iterator[Counter]:
    """Counts `total` units of a piece of work on standard error: a bar of 80 columns on a terminal, and else lines."""
    if not sys.stderr.isatty():
        with logged_progress(description, total, done) as work:
            yield work
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from common.runtime.console import PlainConsole

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
        yield Bar(progress, progress.add_task(one_line(description), total=total, completed=done, note=""))
