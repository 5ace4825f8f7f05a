"""run.py as a person starts it: to the end, after kill -9, and with bad input."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
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
]
CLOCK = ("latency", "seconds")


def command(*arguments):
    return [sys.executable, "run.py", *arguments]


def run(*arguments):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "80"}
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment)


def job(teacher, outputs, *more):
    return [f"teacher.path={teacher}", f"outputs={outputs}", *SMALL, *more]


def only_row(outputs):
    (path,) = Path(outputs).glob("t2i/ld_pruner/*/result.json")
    return path.parent, json.loads(path.read_text())


def without_clock(value):
    if isinstance(value, dict):
        return {name: without_clock(item) for name, item in value.items() if name not in CLOCK}
    if isinstance(value, list):
        return [without_clock(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


@pytest.fixture(scope="module")
def finished(tiny_teacher_folder, tmp_path_factory):
    outputs = tmp_path_factory.mktemp("whole")
    done = run(*job(tiny_teacher_folder, outputs))
    assert done.returncode == 0, done.stderr[-3000:]
    return outputs, done


def test_a_job_leaves_what_it_promises(finished):
    folder, row = only_row(finished[0])
    assert set(row["models"]) == {"real", "teacher", "pruned", "distilled"}
    teacher, pruned, distilled = (row["models"][who] for who in ("teacher", "pruned", "distilled"))
    assert pruned["parameters"] == distilled["parameters"] < teacher["parameters"]
    assert pruned["macs"] < teacher["macs"] and teacher["macs_without_attention_products"] < teacher["macs"]
    assert teacher["ssim"] == 1 and teacher["latent_mse"] == 0 and pruned["latent_mse"] > 0
    assert distilled["latent_mse"] != pruned["latent_mse"]
    assert len(row["plan"]) == 4 and row["settings"]["method"]["k"] == 4
    for picture in ("samples.png", "scores.png", "plan.png"):
        with Image.open(folder / picture) as image:
            assert image.width > 400
    assert all(len(line) <= 80 for line in finished[1].stdout.splitlines() if "result" not in line and "/" not in line)
    assert not list(folder.rglob("*.partial"))


def test_the_saved_student_is_the_measured_one(finished):
    from common.cost import count_parameters
    from common.teachers import load_teacher

    folder, row = only_row(finished[0])
    student = load_teacher(str(folder / "student"))
    assert count_parameters(student.denoiser) == row["models"]["distilled"]["parameters"]
    assert [edit["site"] for edit in student.denoiser.config.plan["edits"]] == [edit["site"] for edit in row["plan"]]


def test_a_finished_job_does_nothing_and_says_so(finished, tiny_teacher_folder):
    folder, _ = only_row(finished[0])
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = run(*job(tiny_teacher_folder, finished[0]))
    assert again.returncode == 0 and "This job is done" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def start_and_kill(arguments, seen, limit=240):
    """kill -9 as soon as seen() holds."""
    process = subprocess.Popen(
        command(*arguments), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + limit
    while process.poll() is None and not seen():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed = process.poll() is None
    if killed:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return killed


@pytest.mark.slow
def test_killed_in_every_stage_the_row_is_the_same(finished, tiny_teacher_folder, tmp_path):
    arguments = job(tiny_teacher_folder, tmp_path)
    stages = {
        "scoring": "cache/scores/*.json",
        "distilling": "t2i/ld_pruner/*/distill/step=2.ckpt",
        "measuring": "t2i/ld_pruner/*/samples/pruned/000000.safetensors",
    }
    for name, pattern in stages.items():
        assert start_and_kill(arguments, lambda pattern=pattern: any(tmp_path.glob(pattern))), f"{name} ended too soon"
        assert not list(tmp_path.glob("t2i/ld_pruner/*/result.json"))
    done = run(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert without_clock(only_row(tmp_path)[1]["models"]) == without_clock(only_row(finished[0])[1]["models"])
    assert without_clock(only_row(tmp_path)[1]["plan"]) == without_clock(only_row(finished[0])[1]["plan"])


@pytest.mark.slow
def test_scratch_starts_from_other_weights(finished, tiny_teacher_folder):
    done = run(*job(tiny_teacher_folder, finished[0], "init=scratch"))
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(path.read_text()) for path in finished[0].glob("t2i/ld_pruner/*/result.json")]
    scratch, preserved = sorted(rows, key=lambda row: row["settings"]["init"], reverse=True)
    assert scratch["plan"] == preserved["plan"]
    assert scratch["models"]["pruned"]["latent_mse"] != preserved["models"]["pruned"]["latent_mse"]
    for row in finished[0].glob("t2i/ld_pruner/*/result.json"):
        if json.loads(row.read_text())["settings"]["init"] == "scratch":
            row.unlink()
            row.parent.rename(finished[0] / "scratch")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("method=ld_prune", "ld_pruner"),
        ("task=t2v", "t2i"),
        ("teacher.path=nobody", "There is no teacher 'nobody'"),
        ("method.k=5000", "k is from 0 to"),
        ("method.k=-1", "k is from 0 to"),
        ("method.exclude=[nothing.*]", "'nothing.*' matches no operator"),
        ("init=zeros", "neither 'preserved' nor 'scratch'"),
        ("calibration.steps=0", "calibration.steps=0: at least 1"),
        ("calibration.num_conditions=0", "calibration.num_conditions=0: at least 1"),
        ("evaluation.split=dev", "the splits are 'train' and 'test'"),
        ("task.data.folder=/nowhere", "/nowhere has no index.json"),
        ("task.data.limit=0", "task.data.limit=0: at least 1"),
        ("method.kinds=[]", "leave no operator to remove"),
        ("method.formula=max", "none of sum, product, mean_only, std_only"),
        ("device=cuda:9", "device='cuda:9' cannot be used here"),
        ("evaluation.images=0", "evaluation.images=0 is too small"),
        ("distill.features=[nothing]", "'nothing' matches no module of the teacher"),
        ("distill.steps=-1", "distill.steps=-1: at least 1"),
    ],
)
def test_bad_input_is_told_in_one_line(tiny_teacher_folder, tmp_path, override, expected):
    done = run(*job(tiny_teacher_folder, tmp_path), override)
    assert done.returncode != 0
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    if not override.startswith(("method=", "task=")):  # Hydra's own messages name the choices over several lines
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and expected in lines[0] and done.stderr.strip().endswith(lines[0])
    assert not list(tmp_path.rglob("result.json"))


METHODS = sorted(path.stem for path in (ROOT / "conf" / "method").glob("*.yaml"))
TASKS = sorted(path.stem for path in (ROOT / "conf" / "task").glob("*.yaml"))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_on_every_task(finished, tiny_teacher_folders, method, task):
    if (method, task) == ("ld_pruner", "t2i"):
        return  # `finished` is that job
    own = [value for value in SMALL if not value.startswith("method.") or method == "ld_pruner"]
    done = run(f"method={method}", f"task={task}", f"teacher.path={tiny_teacher_folders[task]}", f"outputs={finished[0]}", *own)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = Path(finished[0]).glob(f"{task}/{method}/*/result.json")
    models = json.loads(path.read_text())["models"]
    if method != "dense":
        assert models["distilled"]["nonzero_parameters"] < models["teacher"]["nonzero_parameters"]
    assert models["distilled"]["latent_mse"] != models["pruned"]["latent_mse"]
    assert ("caption_retrieval" in models["teacher"]) == (task == "t2i")
    assert (path.parent / "student" / "unet" / "config.json").is_file()


def test_damaged_score_file_is_named(finished, tiny_teacher_folder, tmp_path):
    (tmp_path / "cache" / "scores").mkdir(parents=True)
    for source in Path(finished[0]).glob("cache/scores/*.json"):
        (tmp_path / "cache" / "scores" / source.name).write_text(source.read_text()[:50])
    done = run(*job(tiny_teacher_folder, tmp_path))
    assert done.returncode == 2 and "is damaged" in done.stderr and "Traceback" not in done.stderr


def test_a_method_from_outside_the_tree(tiny_teacher_folder, tmp_path):
    """The README's own example, taken from its text."""
    readme = (ROOT / "README.md").read_text().split("## Adding a method")[1].split("## ")[0]
    blocks = textwrap.dedent("\n".join(line for line in readme.splitlines() if line.startswith("    ") or not line))
    code, rest = blocks.split("# my_conf/method/my_method.yaml\n")
    yaml = rest.split("python run.py")[0]
    for path, text in {"my_method/method.py": code, "my_conf/method/my_method.yaml": yaml}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    arguments = [value for value in job(tiny_teacher_folder, tmp_path / "out") if not value.startswith("method.")]
    done = subprocess.run(
        command(
            *arguments,
            "method=my_method",
            "distill=ld_pruner",
            "distill.steps=1",
            f"hydra.searchpath=[file://{tmp_path}/my_conf]",
        ),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = (tmp_path / "out" / "t2i" / "my_method").glob("*/result.json")
    assert [edit["operation"] for edit in json.loads(path.read_text())["plan"]] == ["zero"] * 4


def test_help_answers_without_loading_torch():
    script = (
        "import runpy, sys\nsys.argv = ['run.py', '--help']\nrunpy.run_path('run.py', run_name='__main__')\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "method: bk_sdm, dense, diff_pruning, l1_diff, laptop_diff, ld_pruner" in done.stdout


def test_torch_is_the_constrained_one():
    pinned = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    assert torch.__version__.split("+")[0] == pinned.split("==")[1]
