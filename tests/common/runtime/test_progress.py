"""Progress as lines of a log: as work begins and ends, and at least every 30 s, by a clock that the test winds."""

import io

import pytest

from common.runtime import progress
from common.runtime.progress import EVERY, Log, clock_time, progress_bar, under_way


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def log():
    clock, lines = Clock(), []
    made = Log(clock, lines.append)
    made.lines, made.clock_of_test = lines, clock
    return made


def test_a_line_as_work_begins_and_ends_and_every_thirty_seconds_between(log):
    with log.work("distilling", 100, 40) as work:
        assert log.lines == ["distilling: 40 of 100"]
        for second in range(1, 61):
            log.clock_of_test.now += 1
            work.advance(1, f"loss {second / 10:.4f}")
    assert log.lines[1:] == [
        "distilling: 70 of 100, 1 s each, 0:30 left, loss 3.0000",
        "distilling: 100 of 100, 1 s each, 0:00 left, loss 6.0000",
        "distilling: 100 of 100 done in 1:00, loss 6.0000",
    ]


def test_work_that_says_nothing_is_told_of_all_the_same(log):
    with log.work("stage: measuring"), log.work("searching", 3):
        log.clock_of_test.now += EVERY - 1
        log.tick()
        assert log.lines == ["stage: measuring", "searching: 0 of 3"]
        log.clock_of_test.now += 1
        log.tick()
    log.clock_of_test.now += EVERY
    log.tick()  # nothing is under way
    assert log.lines[2:] == ["searching: 0 of 3", "searching: 0 of 3 done in 0:30", "stage: measuring: done in 0:30"]


def test_the_enclosing_work_is_told_of_when_the_inner_one_is_over(log):
    with log.work("stage: distilling"):
        with log.work("encoding", 8) as work:
            log.clock_of_test.now += 2
            work.advance(8)
        log.clock_of_test.now += EVERY
        log.tick()
        assert log.lines[-1] == "stage: distilling: 0:32 so far"
        log.clock_of_test.now += 3 * EVERY
        log.tick()
        assert log.lines[-1] == "stage: distilling: 2:02 so far"


def test_work_that_fails_is_not_told_to_be_done(log):
    with pytest.raises(RuntimeError), log.work("scoring", 4):
        raise RuntimeError
    assert log.lines == ["scoring: 0 of 4"] and not log.under_way


def test_speed_and_time(log):
    with log.work("fast", 1000) as work:
        log.clock_of_test.now += EVERY
        work.reach(750)
    assert log.lines[1] == "fast: 750 of 1000, 25 a second, 0:10 left"
    assert [clock_time(seconds) for seconds in (6.7, 750, 11100)] == ["0:07", "12:30", "3:05:00"]


def test_what_is_no_terminal_gets_lines_alone(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with under_way("stage: scoring"), progress_bar("scoring layers", 2) as bar:
        bar.advance()
        bar.advance(1, "[red]half[/red]")
    assert [line.rpartition(" in ")[0] or line for line in stream.getvalue().splitlines()] == [
        "stage: scoring",
        "scoring layers: 0 of 2",
        "scoring layers: 2 of 2 done",
        "stage: scoring: done",
    ]
    assert not any(character in stream.getvalue() for character in "\r\x1b")
    assert not progress.LOG.under_way


def test_other_processes_of_a_job_say_nothing(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("RANK", "1")
    with under_way("stage: scoring"), progress_bar("scoring layers", 2) as bar:
        bar.advance()
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with under_way("stage: scoring"), progress_bar("scoring layers", 2) as bar:
        bar.reach(2)
    assert "\x1b" in stream.getvalue() and "2/2" in stream.getvalue() and "stage" not in stream.getvalue()
