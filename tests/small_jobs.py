"""Jobs of a few steps on tiny teachers, for the tests of whole commands."""

import json
import time
from pathlib import Path

from tests.commands import start

SMALL = [
    "method.k=4",
    "method.kinds=[resnet,transformer,downsampler,upsampler]",
    "calibration.num_conditions=4",
    "calibration.samples=2",
    "calibration.steps=2",
    "task.data.limit=20",
    "distill.steps=6",
    "distill.batch_size=4",
    "distill.checkpoint_every=2",
    "evaluation.images=16",
    "evaluation.batch_size=8",
    "evaluation.steps=2",
    "evaluation.latency_rounds=2",
    "logging=none",
]


def job(task, teacher, outputs, *more, method="ld_pruner"):
    """The arguments of a job of a few steps."""
    own = [value for value in SMALL if not value.startswith("method.") or method == "ld_pruner"]
    return ["run.py", f"method={method}", f"task={task}", f"teacher.path={teacher}", f"outputs={outputs}", *own, *more]


def the_row(outputs, pattern="*/*"):
    """Folder and row of the only job of `outputs` that matches."""
    (path,) = Path(outputs).glob(f"{pattern}/*/result.json")
    return path.parent, json.loads(path.read_text())


def without_clock(value):
    """A row without what differs between runs: times."""
    if isinstance(value, dict):
        return {name: without_clock(item) for name, item in value.items() if name not in ("latency", "seconds")}
    if isinstance(value, list):
        return [without_clock(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def start_and_kill(arguments, seen, limit=240):
    """kill -9 as soon as seen() holds; whether it was still running then."""
    running = start(*arguments)
    deadline = time.monotonic() + limit
    while running.process.is_alive() and not seen():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed = running.process.is_alive()
    if killed:
        running.kill()
    return killed
