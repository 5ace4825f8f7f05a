"""run.py as a person starts it: to the end, and after kill -9."""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from PIL import Image

from common.cost.macs import count_parameters
from common.errors import InputError
from common.models.loading import load_denoiser, load_teacher
from common.pruning.plan import Edit, Plan
from experiments.job.planning import kept_plan
from tests.commands import ROOT, run
from tests.small_jobs import job, start_and_kill, the_row, without_clock

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tiny_teacher_folder, tmp_path_factory):
    outputs = tmp_path_factory.mktemp("whole")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "80"}
    arguments = [sys.executable, *job("t2i", tiny_teacher_folder, outputs)]  # a fresh interpreter, as from a shell
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return outputs, done


def test_a_job_leaves_what_it_promises(finished):
    folder, row = the_row(finished[0], "t2i/ld_pruner")
    assert set(row["models"]) == {"real", "teacher", "pruned", "distilled"}
    teacher, pruned, distilled = (row["models"][who] for who in ("teacher", "pruned", "distilled"))
    assert pruned["parameters"] == distilled["parameters"] < teacher["parameters"]
    assert pruned["macs"] < teacher["macs"] and teacher["macs_without_attention_products"] < teacher["macs"]
    assert teacher["ssim"] == 1 and teacher["latent_mse"] == 0 and pruned["latent_mse"] > 0
    assert distilled["latent_mse"] != pruned["latent_mse"]
    assert distilled["caption_retrieval_low"] <= distilled["caption_retrieval"] <= distilled["caption_retrieval_high"]  # of few
    for name in ("kd_effnet", "fd_effnet", "latent_mse", "feature_mse"):
        assert distilled[f"{name}_low"] < distilled[name] < distilled[f"{name}_high"]
        assert len(distilled[f"{name}_replicates"]) == 8  # of 16 samples
    assert teacher["feature_mse"] == 0 < pruned["feature_mse"] and "±" in finished[1].stdout
    assert len(row["plan"]) == 4 and row["settings"]["method"]["k"] == 4
    for picture in ("samples.png", "scores.png", "plan.png"):
        with Image.open(folder / picture) as image:
            assert image.width > 400
    assert all(len(line) <= 80 for line in finished[1].stdout.splitlines() if "result" not in line and "/" not in line)
    assert not [path for path in folder.rglob("*") if path.suffix in (".partial", ".ckpt")]
    assert (folder / "distill" / "log").is_dir()


def test_a_log_tells_of_each_stage_and_of_the_loss(finished):
    told = finished[1].stderr
    assert not any(character in told for character in "\r\x1b")
    stages = [line.removeprefix("stage: ") for line in told.splitlines() if line.startswith("stage: ") and "done" not in line]
    assert stages == ["loading", "scoring", "distilling", "measuring", "timing", "plotting"]
    for work in ("scoring operators: 0 of ", "encoding images: 0 of ", "distilling: 0 of 6", "sampling: distilled: 0 of 16"):
        assert f"\n{work}" in told
    assert re.search(r"^distilling: 6 of 6 done in \d+:\d\d, loss \d+\.\d{4}$", told, re.MULTILINE)


def test_the_saved_student_is_the_measured_one(finished):
    from common.cost.macs import count_parameters
    from common.models.loading import load_teacher

    folder, row = the_row(finished[0], "t2i/ld_pruner")
    student = load_teacher(str(folder / "student"))
    assert count_parameters(student.denoiser) == row["models"]["distilled"]["parameters"]
    assert [edit["site"] for edit in student.denoiser.config.plan["edits"]] == [edit["site"] for edit in row["plan"]]


def test_a_finished_job_does_nothing_and_says_so(finished, tiny_teacher_folder):
    folder, _ = the_row(finished[0], "t2i/ld_pruner")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = run(*job("t2i", tiny_teacher_folder, finished[0]))
    assert again.returncode == 0 and "This job is done" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.exhaustive
def test_killed_in_every_stage_the_row_is_the_same(finished, tiny_teacher_folder, tmp_path):
    arguments = job("t2i", tiny_teacher_folder, tmp_path)
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
    ours, theirs = (the_row(outputs, "t2i/ld_pruner")[1] for outputs in (tmp_path, finished[0]))
    assert without_clock(ours["models"]) == without_clock(theirs["models"])
    assert without_clock(ours["plan"]) == without_clock(theirs["plan"])


@pytest.mark.slow
def test_scratch_starts_from_other_weights(finished, tiny_teacher_folder):
    done = run(*job("t2i", tiny_teacher_folder, finished[0], "init=scratch"))
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(path.read_text()) for path in finished[0].glob("t2i/ld_pruner/*/result.json")]
    scratch, preserved = sorted(rows, key=lambda row: row["settings"]["init"], reverse=True)
    assert scratch["plan"] == preserved["plan"]
    assert scratch["models"]["pruned"]["latent_mse"] != preserved["models"]["pruned"]["latent_mse"]
    for row in finished[0].glob("t2i/ld_pruner/*/result.json"):
        if json.loads(row.read_text())["settings"]["init"] == "scratch":
            row.unlink()
            row.parent.rename(finished[0] / "scratch")


def test_damaged_score_file_is_named(finished, tiny_teacher_folder, tmp_path):
    (tmp_path / "cache" / "scores").mkdir(parents=True)
    for source in Path(finished[0]).glob("cache/scores/*.json"):
        (tmp_path / "cache" / "scores" / source.name).write_text(source.read_text()[:50])
    done = run(*job("t2i", tiny_teacher_folder, tmp_path))
    assert done.returncode == 2 and "is damaged" in done.stderr and "Traceback" not in done.stderr


UNTRAINED = ["distill=bk_sdm", "distill.steps=0"]


def written_from_the_page(folder):
    """Writes the files of docs/adding_a_method.md: a block of code each, which begins with its path."""
    page = (ROOT / "docs" / "adding_a_method.md").read_text()
    code = textwrap.dedent("\n".join(line for line in page.splitlines() if line.startswith("    ") or not line))
    for block in code.split("\n# ")[1:]:
        name, _, text = block.partition("\n")
        path = folder / name.strip()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.partition("\nPYTHONPATH=")[0])
    return folder


def outside_job(folder, teacher, method, *more):
    arguments = job("t2i", teacher, folder / "out", method=method)
    return run(*arguments, *UNTRAINED, f"hydra.searchpath=[file://{folder}/my_conf]", *more, PYTHONPATH=str(folder))


def test_methods_from_outside_the_tree(tiny_teacher_folder, tmp_path):
    """The documentation's own examples, taken from its text; the row's command names where the method is."""
    folder = written_from_the_page(tmp_path)
    plans = {}
    for method, more in {"my_method": [], "least_change": ["method.batch_size=8"]}.items():
        done = outside_job(folder, tiny_teacher_folder, method, *more)
        assert done.returncode == 0, done.stderr[-3000:]
        (path,) = (folder / "out" / "t2i" / method).glob("*/result.json")
        row = json.loads(path.read_text())
        plans[method] = [edit["site"] for edit in row["plan"]]
        assert f"'hydra.searchpath=[file://{folder}/my_conf]' method={method}" in row["command"]
    assert len(plans["my_method"]) == 4 and all(site.startswith("up_blocks.1") for site in plans["my_method"])
    assert plans["least_change"] and plans["least_change"] != plans["my_method"]


def test_a_changed_method_is_another_job(tiny_teacher_folder, tmp_path):
    folder = written_from_the_page(tmp_path)
    path = folder / "my_method" / "method.py"
    good = path.read_text()
    assert outside_job(folder, tiny_teacher_folder, "my_method").returncode == 0
    path.write_text(good.replace("[-self.count :]", "[: self.count]"))
    again = outside_job(folder, tiny_teacher_folder, "my_method")
    assert again.returncode == 0 and "This job is done" not in again.stdout
    assert len(list((folder / "out" / "t2i" / "my_method").glob("*/result.json"))) == 2


BROKEN_PLANS = {
    "The method's plan is a NoneType; a common.Plan is needed": None,
    "'nope', which this UNet2DConditionModel does not have": Plan("a", (Edit("nope", "zero"),)),
    "by 'remove'; there are identity, skip, linear, zero,": Plan("a", (Edit("conv_in", "remove"),)),
    "plan of 1 edits leaves a network that does not run": Plan("a", (Edit("up_blocks.0.resnets.0", "identity"),)),
    "does not run: not enough values to unpack": Plan("a", (Edit("down_blocks.0", "identity"),)),
}


@pytest.mark.parametrize("told", BROKEN_PLANS)
def test_a_broken_plan_is_told_and_not_kept(tiny_teacher_folder, tmp_path, told):
    teacher = load_teacher(str(tiny_teacher_folder))
    with pytest.raises(InputError, match=re.escape(told)):
        kept_plan(tmp_path / "plan", teacher, "denoiser", lambda: BROKEN_PLANS[told])
    assert not list(tmp_path.iterdir())


def test_a_method_that_cannot_be_imported_says_why(tiny_teacher_folder, tmp_path):
    folder = written_from_the_page(tmp_path)
    arguments = job("t2i", tiny_teacher_folder, folder / "out", method="my_method")
    lost = run(*arguments, *UNTRAINED, f"hydra.searchpath=[file://{folder}/my_conf]")
    (line,) = lost.stderr.splitlines()
    assert "No module named 'my_method'; a folder outside of the project goes into PYTHONPATH" in line
    (folder / "my_method" / "method.py").write_text("import not_there")
    (line,) = outside_job(folder, tiny_teacher_folder, "my_method").stderr.splitlines()
    assert "No module named 'not_there'" in line


def run_on_a_tiny_teacher(lines, teacher, folder, monkeypatch):
    """Runs lines of the documentation in `folder`, their job made tiny; the names that they leave."""
    from experiments.shared.job import Job

    compose, small = Job.compose, job("t2i", teacher, folder / "outputs", method="laptop_diff")[3:]

    def compose_small(*overrides):
        return compose(*overrides, *small, "distill.steps=2", f"task.data.folder={ROOT}/data/emoji")

    monkeypatch.setattr(Job, "compose", compose_small)
    monkeypatch.chdir(folder)
    scope = {}
    exec(lines, scope)
    return scope


def blocks_of_python(text):
    return [part.split("```")[0] for part in text.split("```python")[1:]]


def test_a_job_in_python(tiny_teacher_folder, tmp_path, monkeypatch):
    """The README's own lines, on a tiny teacher."""
    (block,) = blocks_of_python((ROOT / "README.md").read_text().split("<!-- python: a job -->")[1])
    assert len(block.strip().splitlines()) <= 12
    left = run_on_a_tiny_teacher(block, tiny_teacher_folder, tmp_path, monkeypatch)
    student = load_denoiser(tmp_path / "student")
    assert count_parameters(student) == count_parameters(left["student"].denoiser)
    assert count_parameters(student) < count_parameters(left["job"].teacher.denoiser)
    weights = left["student"].denoiser.state_dict()
    assert any(not torch.equal(weight, left["pruned"].denoiser.state_dict()[name]) for name, weight in weights.items())


def test_the_page_on_python(tiny_teacher_folder, tmp_path, monkeypatch, capsys):
    """docs/in_python.md from its first line to its last, on a tiny teacher."""
    lines = "".join(blocks_of_python((ROOT / "docs" / "in_python.md").read_text()))
    left = run_on_a_tiny_teacher(lines, tiny_teacher_folder, tmp_path, monkeypatch)
    plan, figures = left["plans"]["denoiser"], left["figures"]
    told = capsys.readouterr().out
    for edit in plan.edits:
        assert told.count(edit.site) >= 2  # in both tables
    assert "parameters that go" in told and f"laptop_diff: {len(plan.edits)} edit" in told
    assert set(figures) == {"real", "teacher", "pruned", "distilled"} and figures["teacher"]["feature_mse"] == 0
    assert figures["distilled"]["feature_mse_low"] <= figures["distilled"]["feature_mse"] != figures["pruned"]["feature_mse"]
    kept = [sum(weight.numel() for weight in left[name].parameters()) for name in ("unet", "same")]
    assert kept[0] == kept[1] == count_parameters(left["pruned"].denoiser)


@pytest.mark.parametrize("override", ["method.k=x", "evaluation.steps=0", "distill.optimizer.lr=x", "task.data.limit=x"])
def test_a_bad_setting_is_told_without_loading_diffusers(override):
    """To import it takes longer than a person wants to wait for a line about a typing mistake."""
    script = (
        f"import runpy, sys\nsys.argv = ['run.py', {override!r}]\n"
        "try:\n    runpy.run_path('run.py', run_name='__main__')\nexcept SystemExit as end:\n    assert end.code == 2\n"
        "assert not {'diffusers', 'lightning', 'transformers'}.intersection(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and override.partition("=")[0] in done.stderr, done.stderr


def test_help_answers_without_loading_torch():
    script = (
        "import runpy, sys\nsys.argv = ['run.py', '--help']\nrunpy.run_path('run.py', run_name='__main__')\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "method: bk_sdm, block_influence, dense, diff_pruning, l1_diff, laptop_diff, ld_pruner" in done.stdout


def test_torch_is_the_constrained_one():
    pinned = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    assert torch.__version__.split("+")[0] == pinned.split("==")[1]
