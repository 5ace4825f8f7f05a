"""Two processes run a job with the result of one: scores, every loss, metrics, student; and end together when one fails."""

import csv
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.commands import ROOT, run, start
from tests.small_jobs import job, the_row

pytestmark = pytest.mark.slow

TRAINING = [
    "distill.steps=12",
    "distill.checkpoint_every=8",
    "distill.optimizer.lr=1e-4",
    "+distill.trainer.log_every_n_steps=1",
    "evaluation.reference_images=16",
    "evaluation.images=8",
    "evaluation.batch_size=2",
]
JOBS = {
    "ld_pruner": ("t2i", ["method.rows=4", "distill.accumulate=2", "evaluation.every=6"]),
    "laptop_diff": (
        "uig",
        [
            "calibration.data_rows=6",
            "method.batch_size=3",
            "method.copies=2",
            "method.ratio=0.3",
            "distill.trainer.strategy=fsdp",  # which one process leaves aside
            "distill.ema_decay=0.9",
        ],
    ),
    "l1_diff": (
        "uag",
        [
            "method.parts=[denoiser,autoencoder]",
            "distill.autoencoder.steps=4",
            "distill.autoencoder.batch_size=4",
            "method.schedule=gradual",
            "method.remask_every=4",
            "method.regrow_every=5",
            "method.regrowth=0.05",
            "calibration.data_rows=8",
        ],
    ),
}


def start_together(*arguments, count=2, before=None, **environment):
    """The same command as `count` processes that know of each other, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"GROUP_RANK": "0", "OMP_NUM_THREADS": "1"}
    return [
        start(*arguments, before=before, **shared, RANK=rank, LOCAL_RANK=rank, **environment) for rank in map(str, range(count))
    ]


def together(*arguments, **how):
    """As start_together, to the end."""
    return [each.wait(200) for each in start_together(*arguments, **how)]


def keep_checkpoints():
    """A job leaves none; to go on from one, it is kept."""
    from common.training import fit as training

    training.drop_checkpoints = lambda folder: None


def both(task, teacher, folder, *settings, method):
    """Folder and row of the job in one process and in two, these with their checkpoints."""
    arguments = [*TRAINING, *settings]
    alone = run(*job(task, teacher, folder / "one", *arguments, method=method), OMP_NUM_THREADS="1")
    assert alone.returncode == 0, alone.stderr
    first, second = together(*job(task, teacher, folder / "two", *arguments, method=method), before=keep_checkpoints)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert "distilling" in first.stderr and not second.stderr and not second.stdout
    return the_row(folder / "one"), the_row(folder / "two")


def losses(folder, part="."):
    """Every logged figure of a training by step."""
    logged = {}
    for path in sorted(Path(folder, "distill", part).glob("log/*/metrics.csv")):
        for row in csv.DictReader(path.open()):
            logged.setdefault(int(row["step"]), {}).update({name: float(value) for name, value in row.items() if value})
    return logged


def assert_close(one, two, tolerance):
    """Equal structure, and numbers that differ by rounding."""
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for name in one:
            if name not in ("latency", "checkpoint_bytes_fp16"):
                assert_close(one[name], two[name], tolerance)
    elif isinstance(one, list):
        assert len(one) == len(two)
        for pair in zip(one, two, strict=True):
            assert_close(*pair, tolerance)
    elif isinstance(one, float):
        assert one == pytest.approx(two, rel=tolerance, abs=tolerance)
    else:
        assert one == two


def weights(folder, part="unet"):
    return load_file(next(Path(folder, "student", part).glob("*.safetensors")))


@pytest.mark.parametrize("method", JOBS)
@pytest.mark.exhaustive
def test_two_processes_equal_one(two_level_teacher_folders, tmp_path, method):
    task, settings = JOBS[method]
    teacher = two_level_teacher_folders[task]
    (one, row), (two, shared) = both(task, teacher, tmp_path, *settings, method=method)
    scores = [sorted(Path(outputs, "cache", "scores").glob("*.json")) for outputs in (tmp_path / "one", tmp_path / "two")]
    assert [path.name for path in scores[0]] == [path.name for path in scores[1]]
    assert bool(scores[0]) == (method != "l1_diff")  # whose scores are the masks of the plan
    for mine, theirs in zip(*scores, strict=True):
        assert mine.read_text() == theirs.read_text()
    assert row["plan"] == shared["plan"]
    for who in ("real", "teacher", "pruned"):
        assert_close(row["models"][who], shared["models"][who], 1e-9)
    logged = losses(one)
    assert len([step for step, values in logged.items() if "loss" in values]) == 12
    assert_close(logged, losses(two), 1e-4)
    assert_close(row["curve"], shared["curve"], 1e-3)
    assert_close(row["models"]["distilled"], shared["models"]["distilled"], 2e-3)
    assert_close(row["training"], shared["training"], 1e-6)
    for name, value in weights(one).items():
        assert torch.allclose(value.float(), weights(two)[name].float(), atol=2e-3), name
    if method == "l1_diff":
        zeros = [sum(int((value == 0).sum()) for value in weights(folder).values()) for folder in (one, two)]
        assert zeros[0] == zeros[1] > 100
        assert_close(losses(one, "autoencoder"), losses(two, "autoencoder"), 1e-4)
    if method != "l1_diff":  # ld_pruner in another number of processes, laptop_diff with weights and averages in parts
        again = [*job(task, teacher, tmp_path / "two", *TRAINING, *settings, method=method)]
        goes_on(again, two, count=1 if method == "ld_pruner" else 2)


def goes_on(arguments, folder, count):
    """From step 8, where two processes had a checkpoint, `count` processes reach the student of two."""
    import shutil

    wanted = weights(folder)
    shutil.rmtree(folder / "student")
    (folder / "result.json").unlink()
    (folder / "distill" / "step=12.ckpt").unlink()
    for done in together(*arguments, count=count):
        assert done.returncode == 0, done.stderr
    assert (folder / "distill" / "log" / "from_8").is_dir()
    for name, value in weights(folder).items():
        assert torch.allclose(value.float(), wanted[name].float(), atol=2e-3), name


def lines(*finished):
    """What all processes told of errors."""
    told = "".join(each.stderr for each in finished)
    assert "Traceback" not in told
    return [line for line in told.splitlines() if line.startswith("error: ")]


def test_a_batch_that_cannot_be_shared_is_told_once(tiny_teacher_folder, tmp_path):
    finished = together(*job("t2i", tiny_teacher_folder, tmp_path, "distill.batch_size=5"))
    assert [each.returncode for each in finished] == [2, 2]
    assert lines(*finished) == ["error: distill.batch_size=5 is no multiple of the 2 processes; 4 or 6 is."]


def test_what_goes_wrong_later_is_told_once(tiny_teacher_folder, tmp_path):
    """After scoring, in one forward pass, for which the second process has nothing to do."""
    settings = ["method.k=1", "calibration.num_conditions=1", "distill.features=[nothing]"]
    finished = together(*job("t2i", tiny_teacher_folder, tmp_path, *settings))
    assert [each.returncode for each in finished] == [2, 2]
    (line,) = lines(*finished)
    assert line.startswith("error: distill.features: 'nothing' matches no module")


def fail_in_the_second():
    """In the process with rank 1 there is no memory for the first forward pass of scoring."""
    import os

    from torch import nn

    if os.environ["RANK"] == "1":
        original = nn.GroupNorm.forward

        def forward(self, values):
            if len(values) == 1:  # while the job is checked
                return original(self, values)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

        nn.GroupNorm.forward = forward


def test_one_process_without_memory_ends_all(tiny_teacher_folder, tmp_path):
    begun = time.monotonic()
    arguments = job("t2i", tiny_teacher_folder, tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        start(*arguments, before=fail_in_the_second, **shared, RANK=rank, LOCAL_RANK=rank, OMP_NUM_THREADS="1") for rank in "01"
    ]
    finished = [each.wait(100) for each in started]
    assert [each.returncode for each in finished] == [2, 2], [each.stderr for each in finished]
    (line,) = lines(*finished)
    assert line.startswith("error: out of memory while scoring: lower one of method.rows=128, method.weight_rows=16")
    assert time.monotonic() - begun < 60


@pytest.mark.exhaustive
def test_bad_input_under_torchrun_is_told_once(tiny_teacher_folder, tmp_path):
    arguments = job("t2i", tiny_teacher_folder, tmp_path, "method.k=5000")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == 1 and "k is from 0 to" in told[0]
    assert not list(tmp_path.rglob("result.json"))


def test_losses_that_cannot_be_scaled_are_told_before_the_long_work(tiny_teacher_folder, tmp_path):
    settings = ["distill.trainer.strategy=fsdp", "distill.trainer.precision=16-mixed"]
    finished = together(*job("t2i", tiny_teacher_folder, tmp_path, *settings))
    assert [each.returncode for each in finished] == [2, 2]
    (line,) = lines(*finished)
    assert line.endswith("precision=16-mixed: give bf16-mixed or 32-true, or take ddp.")
    assert not list(tmp_path.rglob("plan.json"))
