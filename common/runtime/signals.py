"""Signals that ask a command to end, raised as an exception in its main thread, so that what is begun is closed in order."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

TOLD = {signal.SIGHUP: "hung up", signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
AGAIN = 0.05  # seconds until a signal that was lost is sent once more
USUAL = (signal.SIG_DFL, signal.default_int_handler)


class Ended(BaseException):
    """A signal asks the command to end.

    Neither an Exception nor a KeyboardInterrupt, so that nothing on the way out (Lightning's trainer) takes it for its own.
    """

    def __init__(self, number: int):
        super().__init__(TOLD[signal.Signals(number)])
        self.number = number
        self.exit_code = 128 + number  # as a shell says it


@contextmanager
def raised_signals() -> Iterator[None]:
    """Raises Ended inside, in the main thread, for the signals of TOLD.

    One that is ignored stays ignored (nohup), and one that somebody handles stays with them (submitit's requeueing). Where a
    module in C that was being imported has made another error of it, that is told as Ended too; where it arrived in what Python
    calls on its own, as when an object is freed, and so went no further, it is raised once more.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []

    def end(number: int, frame: Any) -> None:
        arrived.append(number)
        raise Ended(number)

    before = {number: signal.getsignal(number) for number in TOLD}
    taken = {number: handler for number, handler in before.items() if handler in USUAL}
    for number in taken:
        signal.signal(number, end)
    told = sys.unraisablehook

    def again(lost: Any) -> None:
        if isinstance(lost.exc_value, Ended):
            threading.Timer(AGAIN, signal.pthread_kill, (threading.main_thread().ident, lost.exc_value.number)).start()
        else:
            told(lost)

    sys.unraisablehook = again
    try:
        yield
    except Exception as error:
        if arrived:
            raise Ended(arrived[0]) from error
        raise
    finally:
        sys.unraisablehook = told
        for number, handler in taken.items():
            signal.signal(number, handler)


def handlers_of_now() -> Callable[[], None]:
    """What puts the present handlers of the signals of TOLD back."""
    before = {number: signal.getsignal(number) for number in TOLD}

    def put_back() -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)

    return put_back
