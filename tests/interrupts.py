"""Every method, ended by SIGTERM, SIGINT and kill -9 in every stage: exit codes, what is told, and the row at last.

    python -m pytest -n 0 -s tests/interrupts.py                     # all of them: some 20 starts a method
    python -m pytest -n 0 -s tests/interrupts.py -k "ld_pruner or l1_diff"

A job is ended in its first stage by each signal in turn, started again, ended in the next stage, and so on; at last it runs to
its end, and its row is that of a job which nobody ended.
"""

import re
import signal

import pytest

from tests.commands import ROOT, run
from tests.small_jobs import job, the_row, without_clock
from tests.test_ends import LINES, end

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
METHODS = sorted(path.stem for path in (ROOT / "conf" / "method").glob("*.yaml"))
STAGES = {  # what a log says as they begin
    "loading": "stage: loading",
    "scoring": "stage: scoring",
    "encoding": "encoding images: ",
    "autoencoder": "training autoencoder: ",
    "distilling": "distilling: ",
    "measuring": "stage: measuring",
    "sampling": "sampling: (pruned|distilled): ",
    "plotting": "stage: plotting",
}
TRAINED = {"autoencoder": "*/*/*/distill/autoencoder", "distilling": "*/*/*/distill"}
TASKS = {"l1_diff": "uig", "magnitude": "uag"}
OWN = {
    "diff_pruning": ["method.every=250"],
    "l1_diff": ["method.parts=[denoiser,autoencoder]", "distill.autoencoder.steps=10", "distill.autoencoder.batch_size=4"],
}


def steps_of(outputs, stage):
    """The checkpoints of the stage's training, by their steps."""
    return {path.name for path in outputs.glob(f"{TRAINED[stage]}/step=*.ckpt")} if stage in TRAINED else set()


def is_in(outputs, stage, before):
    """Whether the log shows the job in a stage, and in training a checkpoint that is new."""

    def seen(told):
        if not re.search(f"^{STAGES[stage]}", told, re.MULTILINE):
            return False
        return stage not in TRAINED or bool(steps_of(outputs, stage) - before)

    return seen


def part_of_row(outputs):
    row = without_clock(the_row(outputs)[1])
    return {name: row[name] for name in ("settings", "models", "plan", "reached", "by_steps", "curve", "protocol")}


@pytest.mark.parametrize("method", METHODS)
def test_ended_in_every_stage_the_row_is_the_same(method, tiny_teacher_folders, published_folders, tmp_path):
    task = TASKS.get(method, "t2i")
    own = [f"method.path={published_folders[task]}"] if method == "published" else OWN.get(method, [])
    further = [*own, "distill.steps=10", "evaluation.every=4"]
    whole, ended = tmp_path / "whole", tmp_path / "ended"
    done = run(*job(task, tiny_teacher_folders[task], whole, *further, method=method))
    assert done.returncode == 0, done.stderr
    arguments = job(task, tiny_teacher_folders[task], ended, *further, method=method)
    print(f"\n{method} ({task})".ljust(22) + "".join(number.name.ljust(12) for number in SIGNALS))
    wrong = []
    begins = {stage: re.search(f"^{line}", done.stderr, re.MULTILINE) for stage, line in STAGES.items()}
    for stage in sorted((stage for stage, begin in begins.items() if begin), key=lambda stage: begins[stage].start()):
        shown = []
        for number in SIGNALS:
            finished = end(arguments, number, is_in(ended, stage, steps_of(ended, stage)))
            code, told = finished.returncode, LINES.get(number)
            if number == signal.SIGKILL:
                shown.append(f"{code}")
                good = code == -number
            else:
                once = finished.stderr.count(told) == 1 and "Traceback" not in finished.stderr
                shown.append(f"{code}, {'told' if once else 'NOT told'}")
                good = once and code == 128 + number
            if not good:
                wrong.append((stage, number.name, code, finished.stderr))
        print(f"  {stage}".ljust(21) + "".join(each.ljust(12) for each in shown), flush=True)
    assert not list(ended.rglob("result.json"))
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    equal = part_of_row(ended) == part_of_row(whole)
    left = [path.name for path in ended.rglob("*") if path.suffix in (".ckpt", ".partial")]
    print(f"  at last: row {'equal' if equal else 'DIFFERENT'}, left over: {left or 'nothing'}", flush=True)
    assert equal and not wrong and not left, wrong
