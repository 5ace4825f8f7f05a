"""Starts the project's commands as processes of their own, forked from one that has tests.preloaded behind it.

A command sees what it would see from a shell (arguments, working directory, file descriptors 0 to 2), and can be killed; only
the seconds that a fresh interpreter needs to import torch are spent once instead of at every start.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PRELOADED = ["tests.preloaded"]


def act(arguments: list[str], environment: dict[str, str], folder: str, before: Callable[[], None] | None) -> None:
    """What the forked process does: `arguments` are those of `python`."""
    os.setsid()
    for number, handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        signal.signal(number, handler)  # whatever started the tests may have them ignored (nohup)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    sys.path[1:1] = environment.get("PYTHONPATH", "").split(os.pathsep)
    if before is not None:
        before()
    try:
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            exec(arguments[1], {"__name__": "__main__"})
        else:
            sys.argv = arguments
            runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


@dataclass
class Running:
    """A started command, with the folder where its output goes."""

    process: multiprocessing.Process
    arguments: list[str]
    folder: str

    def kill(self) -> None:
        """kill -9, for it and all that it started."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()

    def wait(self, timeout: float = 600) -> subprocess.CompletedProcess:
        self.process.join(timeout)
        if self.process.is_alive():
            self.kill()
            raise subprocess.TimeoutExpired(self.arguments, timeout)
        return subprocess.CompletedProcess(self.arguments, self.process.exitcode, self.told("stdout"), self.told("stderr"))

    def told(self, name: str) -> str:
        """What it has written so far to "stdout" or "stderr"."""
        path = Path(self.folder, name)
        return path.read_text() if path.exists() else ""


def start(*arguments: str, before: Callable[[], None] | None = None, **environment: str) -> Running:
    """python <arguments> in the project's folder; `before` is called first, in that process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "80", **environment}
    folder = tempfile.mkdtemp()
    process = context.Process(target=act, args=(list(arguments), variables, folder, before))
    process.start()
    return Running(process, list(arguments), folder)


def run(*arguments: str, before: Callable[[], None] | None = None, **environment: str) -> subprocess.CompletedProcess:
    """As start, to the end."""
    return start(*arguments, before=before, **environment).wait()
