"""Jobs on a teacher in the layout of Stable Diffusion XL."""

import json
from pathlib import Path

import pytest
import torch

from common.diffusion.sampling import predict
from common.models.saving import load_student, save_student
from common.runtime.seeding import seeded_normal
from experiments.job.planning import make_plans, prune
from experiments.shared.job import Job
from tests.commands import ROOT, run
from tests.conftest import publish_variant
from tests.small_jobs import job
from tests.test_conf import compose_config

pytestmark = pytest.mark.exhaustive

METHODS = sorted(path.stem for path in (ROOT / "conf" / "method").glob("*.yaml"))
OWN = {"diff_pruning": ["method.every=250"]}


@pytest.fixture
def published(tiny_sdxl_folder, tmp_path):
    return publish_variant(tiny_sdxl_folder, tmp_path / "published", "base")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_plans_prunes_and_saves(tiny_sdxl_folder, published, tmp_path, method):
    own = [f"method.path={published}"] if method == "published" else OWN.get(method, [])
    settings = job("t2i", tiny_sdxl_folder, tmp_path / "outputs", *own, method=method)[1:]
    made = Job(compose_config("config", *settings, f"task.data.folder={ROOT / 'data' / 'emoji'}"), tmp_path / "job")
    teacher = made.teacher
    with torch.no_grad():
        plans = make_plans(made)
        student = prune(made, plans)
        save_student(teacher, student, tmp_path / "student")
        loaded = load_student(teacher, tmp_path / "student")
        noise, conditions = seeded_normal([0, 1], teacher.latent_shape), teacher.encode_captions(["a red apple", "x"])
        given, made, kept = (
            predict(each.denoiser, noise, torch.tensor([3, 700]), conditions) for each in (teacher, student, loaded)
        )
    assert torch.allclose(kept, made, atol=2e-2 * made.abs().max())  # saved in fp16
    assert torch.allclose(made, given) == (method == "dense")
    assert plans["denoiser"].edits or method == "dense"
    parts = {folder.name for folder in (tmp_path / "student").iterdir() if folder.is_dir()}
    assert parts == {"unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"}


def test_a_job_distils_and_measures(tiny_sdxl_folder, tmp_path):
    more = ["distill.condition_dropout=0.5", "task.data.limit=12"]
    done = run(*job("t2i", tiny_sdxl_folder, tmp_path, *more, method="laptop_diff"))
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = Path(tmp_path).glob("t2i/laptop_diff/*/result.json")
    models = json.loads(path.read_text())["models"]
    assert models["distilled"]["latent_mse"] != models["pruned"]["latent_mse"]
    assert models["pruned"]["macs"] < models["teacher"]["macs"]
