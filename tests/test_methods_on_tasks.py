"""Every method runs a few real steps on every task."""

import json

import pytest

from tests.commands import ROOT, run
from tests.small_jobs import job

pytestmark = pytest.mark.slow

METHODS = sorted(path.stem for path in (ROOT / "conf" / "method").glob("*.yaml"))
TASKS = sorted(path.stem for path in (ROOT / "conf" / "task").glob("*.yaml"))
FEW = ["evaluation.images=4", "evaluation.batch_size=4", "evaluation.latency_rounds=1", "distill.steps=2"]
OWN = {"diff_pruning": ["method.every=250"]}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("methods")  # one folder: samples of the teacher and features are shared


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_on_every_task(outputs, two_level_teacher_folders, tiny_teacher_folders, request, method, task):
    own, folders = OWN.get(method, ()), two_level_teacher_folders
    if method in ("bk_sdm", "published", "ld_pruner"):  # the table of the first two is of four levels
        folders = tiny_teacher_folders
    if method == "published":
        own = [f"method.path={request.getfixturevalue('published_folders')[task]}"]
    done = run(*job(task, folders[task], outputs, *FEW, *own, method=method))
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = outputs.glob(f"{task}/{method}/*/result.json")
    models = json.loads(path.read_text())["models"]
    if method != "dense":
        assert models["distilled"]["nonzero_parameters"] < models["teacher"]["nonzero_parameters"]
    assert models["distilled"]["latent_mse"] != models["pruned"]["latent_mse"]
    assert ("caption_retrieval" in models["teacher"]) == (task == "t2i")
    assert (path.parent / "student" / "unet" / "config.json").is_file()
    assert len(list(path.parent.glob("sounds/distilled_*.wav"))) == (4 if task == "uag" else 0)
    assert ("fad_musicnn_to_teacher" in models["pruned"]) == (task == "uag")
