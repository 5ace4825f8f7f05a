"""Jobs without a data set: the student learns from what its teacher draws."""

import json

import pytest

from common.models.loading import load_denoiser
from tests.commands import run
from tests.small_jobs import SMALL, job, the_row

pytestmark = pytest.mark.slow

FEW = ["evaluation.images=8", "evaluation.latency_rounds=1", "distill.steps=2"]
DRAWN = {"images": 24, "held_out": 8, "steps": 2, "rows_per_shard": 10}


def without_data(task, teacher, outputs, *more):
    words = job(task, teacher, outputs, *FEW, "task/data=teacher_samples", *more, method="laptop_diff")
    return [*(word for word in words if word not in SMALL or not word.startswith("task.data")), "method.ratio=0.2"]


@pytest.mark.parametrize("task", ["t2i", "uig", "uag"])
def test_a_job_needs_no_data_set(tiny_teacher_folders, tmp_path, task):
    drawn = [f"task.data.{name}={value}" for name, value in DRAWN.items()]
    command = without_data(task, tiny_teacher_folders[task], tmp_path, *drawn)
    done = run(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "samples of the teacher from other seeds" in " ".join(done.stdout.split())
    folder, row = the_row(tmp_path, f"{task}/*")
    assert row["models"]["distilled"]["feature_mse"] > 0 and row["models"]["real"]["reference_images"] > 2
    assert len(list(tmp_path.glob("cache/teacher-samples-*/*.safetensors"))) == 3
    assert len(list(folder.glob("sounds/distilled_*.wav"))) == (8 if task == "uag" else 0)
    if task == "t2i":  # a report, and the samples in it, need no teacher any more
        tiny_teacher_folders[task].rename(tmp_path / "elsewhere")
        try:
            done = run("-m", "experiments.report", str(tmp_path / task), "--out", str(tmp_path / "report"))
        finally:
            (tmp_path / "elsewhere").rename(tiny_teacher_folders[task])
        assert done.returncode == 0 and "not drawn" not in done.stderr, done.stderr[-3000:]
        assert list((tmp_path / "report").glob("*samples.png")) and (tmp_path / "report" / "index.html").is_file()


def test_a_budget_ends_in_a_table_and_is_found_again(tiny_teacher_folders, tmp_path):
    teacher = tiny_teacher_folders["uig"]
    count = sum(parameter.numel() for parameter in load_denoiser(teacher).parameters())
    command = job("uig", teacher, tmp_path, *FEW, "method.ratio=null", method="magnitude")
    command += [f"method.budget={{parameters: {0.8 * count}, size_mb: 1e6, macs: 1e15}}"]
    for _ in range(2):
        done = run(*command)
        assert done.returncode == 0 and "result.json" in done.stdout, done.stderr[-3000:]
        assert "parameters reached" in " ".join(done.stdout.split())
    _, row = the_row(tmp_path, "uig/*")
    assert 0.5 * count < row["reached"]["parameters_reached"] <= 0.8 * count and row["reached"]["size_mb_reached"] < 1e6
    done = run(*command[:-1], "method.budget={parameters: 1e12}")
    assert done.returncode == 2 and "the teacher keeps to parameters 1,000,000,000,000" in done.stderr
    assert len(list(tmp_path.glob("uig/*/*"))) == 1


@pytest.mark.exhaustive
def test_other_training_data_leave_the_measure_as_it_is(tiny_teacher_folders, tmp_path):
    common = job("t2i", tiny_teacher_folders["t2i"], tmp_path, *FEW, "method.ratio=0.2", method="laptop_diff")
    drawn = [f"task.trained_on.{name}={value}" for name, value in DRAWN.items()]
    rows = {}
    for preset, more in (("real", []), ("teacher_samples", drawn), ("random_conditions", drawn)):
        done = run(*common, f"preset=data/{preset}", *more)
        assert done.returncode == 0, done.stderr[-3000:]
        rows[preset] = sorted(tmp_path.glob("t2i/laptop_diff/*/result.json"), key=lambda path: path.stat().st_mtime)[-1]
    models = {preset: json.loads(path.read_text())["models"] for preset, path in rows.items()}
    assert len(set(rows.values())) == 3
    first = models["real"]
    for other in models.values():
        assert other["teacher"]["fd_effnet"] == first["teacher"]["fd_effnet"]
        assert other["pruned"]["latent_mse"] == first["pruned"]["latent_mse"]
    assert len({model["distilled"]["latent_mse"] for model in models.values()}) == 3


def test_random_conditioning_needs_a_teachers_loss(tiny_teacher_folders, tmp_path):
    command = job("t2i", tiny_teacher_folders["t2i"], tmp_path, "distill=task_only", "distill.random_conditioning=0.5")
    done = run(*command)
    assert done.returncode and "distill.random_conditioning=0.5" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_what_it_costs_is_told(tiny_teacher_folders):
    done = run("run.py", "task=uig", "task/data=teacher_samples", "task.data.images=1000", "dry_run=true")
    assert done.returncode == 0 and "1,000 training samples, 20 steps" in done.stdout, done.stderr
    done = run("run.py", "scale=one_gpu", "method=laptop_diff", "method.ratio=0.4", "dry_run=true", "gpu=RTX4090")
    assert done.returncode == 0 and "10,000 training samples, 25 steps" in done.stdout and "fits into RTX4090" in done.stdout


def test_too_few_samples_to_compare_with_are_told_before_work(tiny_teacher_folders, tmp_path):
    drawn = [f"task.data.{name}={value}" for name, value in (DRAWN | {"images": 2}).items()]
    done = run(*without_data("uig", tiny_teacher_folders["uig"], tmp_path, *drawn))
    assert done.returncode == 2 and "The data has 2 images of split=train" in done.stderr, done.stderr
    assert "two and two are needed" in done.stderr and not list(tmp_path.glob("cache/*"))
