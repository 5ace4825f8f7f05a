"""Every YAML in conf/ is composed and resolved."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from experiments.shared.job_id import job_folder, register_job_folder
from experiments.shared.settings_check import checked

CONF = Path(__file__).resolve().parent.parent / "conf"
ROOTS = {"additivity", "config", "distance_power", "precompute", "train_teacher"}
FILES = sorted(path.relative_to(CONF).with_suffix("") for path in CONF.rglob("*.yaml"))


def compose_config(name="config", *overrides):
    register_job_folder()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, overrides=list(overrides), return_hydra_config=True)


def choice(path):
    """The override that picks a file: conf/method/ld_pruner.yaml -> method=ld_pruner."""
    nested = path.parts[0] in ("experiment", "preset", "table")
    group, option = (path.parts[0], Path(*path.parts[1:])) if nested else (path.parent, path.name)
    return f"{group}={option}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_each_file_composes(path):
    lines = (CONF / path.with_suffix(".yaml")).read_text().splitlines()
    if str(path) in ROOTS:
        cfg = compose_config(str(path))
    elif path.parts[0] == "recipes":
        cfg = compose_config("config", f"scale={path.name}")
    elif path.parts[0] == "teacher_latents":
        cfg = compose_config("train_teacher", "task=t2i")
    elif path.parts[0] == "teacher_training":
        own = ["task=t2i", "teacher_training=dit"] if path.name == "dit" else [f"task={path.name}"]
        cfg = compose_config("train_teacher", *own)
    else:
        task = [word.rstrip(":") for word in lines[0].split() if word.startswith("task=")]
        cfg = compose_config("config", *(task if path.parts[:2] == ("task", "data") else []), choice(path))
    OmegaConf.to_container(OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]), resolve=True)
    assert any(line.startswith("# python ") for line in lines[:2]), "the file does not say how to run it"


def test_methods_instantiate():
    for path in FILES:
        if path.parts[0] == "method":
            cfg = compose_config("config", f"method={path.name}")
            assert hasattr(instantiate(cfg.method, _convert_="all"), "plan")
            assert callable(get_class(cfg.method._target_))


def test_job_folder_follows_what_changes_the_result():
    base = job_folder(compose_config())
    assert base == job_folder(compose_config("config", "outputs=elsewhere", "device=cpu"))
    assert base == job_folder(compose_config("config", "metrics=[fid,pickscore]"))  # measured over what the job has kept
    assert base != job_folder(compose_config("config", "method.k=8"))
    assert base != job_folder(compose_config("config", "evaluation.seeds=shared"))
    assert base.startswith("t2i/ld_pruner/")
    assert job_folder(compose_config("config", "scale=paper")) != base


def test_paper_scale_swaps_teacher_and_budget():
    cfg = compose_config("config", "scale=paper")
    assert cfg.teacher.path == "CompVis/stable-diffusion-v1-4"
    assert cfg.calibration.num_conditions == 50


@pytest.mark.parametrize(
    ("task", "columns"), [("t2i", ["fid", "inception_score", "clip_score"]), ("uig", ["fid"]), ("uag", ["fad_vggish"])]
)
def test_paper_scale_measures_what_the_papers_do(task, columns):
    assert not compose_config("config", f"task={task}").metrics
    cfg = compose_config("config", "scale=paper", f"task={task}")
    assert list(cfg.metrics)[: len(columns)] == columns
    assert all(hasattr(instantiate(metric), "figures") for metric in cfg.metrics.values())
    if task == "t2i":  # BK-SDM's protocol
        evaluation = cfg.evaluation
        assert (evaluation.steps, evaluation.scheduler.name, evaluation.seeds, evaluation.seed) == (25, "PNDM", "shared", 1234)
        assert (cfg.metrics.fid.mode, cfg.saved_images.size) == ("legacy_pytorch", 256)


@pytest.mark.parametrize(
    ("task", "steps", "batch", "weight"), [("t2i", 50000, 256, 0.7), ("uig", 50000, 128, 300), ("uag", 12000, 128, 10)]
)
def test_ld_pruner_s_table_4(task, steps, batch, weight):
    cfg = compose_config("config", "scale=paper", f"task={task}")
    assert (cfg.distill.steps, cfg.distill.batch_size * cfg.distill.accumulate) == (steps, batch)
    assert (cfg.distill.output_weight, cfg.distill.feature_weight) == (weight, weight)


TABLE_4 = {"t2i": (50_000, 256, 12_800_000), "uig": (50_000, 128, 6_400_000), "uag": (12_000, 128, 1_536_000)}
RECIPES = {  # (optimiser steps, samples in each, samples seen), at the papers' scale
    **{(recipe, task): counts for recipe in ("bk_sdm", "laptop_diff", "ld_pruner") for task, counts in TABLE_4.items()},
    ("bk_sdm_tiny", "t2i"): (50_000, 256, 12_800_000),
    ("bk_sdm_v2", "t2i"): (50_000, 128, 6_400_000),
    ("bk_sdm_v2_tiny", "t2i"): (50_000, 128, 6_400_000),
    ("segmind", "t2i"): (50_000, 32, 1_600_000),
    ("small_stable_diffusion", "t2i"): (500_000, 128, 64_000_000),
    ("l1_diff", "uig"): (50 * 938, 32, 50 * 30_016),
    ("l1_diff_notebook", "uig"): (2 * 938, 32, 2 * 30_016),
    ("diff_pruning", "uig"): (100_000, 128, 12_800_000),
}


@pytest.mark.parametrize(("recipe", "task"), RECIPES)
def test_recipes_count_optimiser_steps_as_their_papers(recipe, task):
    settings = compose_config("config", "scale=paper", f"task={task}", f"distill={recipe}").distill
    batch = settings.batch_size * settings.accumulate
    assert (settings.steps, batch, settings.steps * batch) == RECIPES[recipe, task]


def test_bk_sdm_s_scripts():
    cfg = compose_config("config", "scale=paper", "method=bk_sdm", "distill=bk_sdm")
    assert (cfg.seed, cfg.distill.schedule.name, cfg.distill.schedule.warmup) == (1234, "constant", 0)
    assert (cfg.distill.optimizer.lr, cfg.distill.optimizer.weight_decay) == (5e-5, 1e-2)
    assert (cfg.distill.trainer.gradient_clip_val, cfg.distill.trainer.precision) == (1.0, "16-mixed")
    assert (cfg.distill.gradient_checkpointing, cfg.distill.ema_decay, cfg.distill.condition_dropout) == (True, 0.9999, 0.0)
    assert (cfg.distill.task_weight, cfg.distill.output_weight, cfg.distill.feature_weight) == (1.0, 1.0, 1.0)
    (group,) = instantiate(cfg.distill.optimizer)([torch.nn.Parameter(torch.zeros(1))]).param_groups
    assert (group["betas"], group["eps"]) == ((0.9, 0.999), 1e-8)


def test_recipes_with_settings_of_their_own():
    def settings(recipe):
        cfg = compose_config("config", "scale=paper", "task=uig", f"distill={recipe}").distill
        return cfg.optimizer.lr, cfg.optimizer.weight_decay, cfg.schedule.name, cfg.schedule.warmup

    assert settings("segmind") == (1e-5, 1e-2, "cosine", 0)
    assert settings("small_stable_diffusion") == (1e-5, 1e-2, "constant", 10_000)
    assert settings("l1_diff") == (1e-4, 0.0, "constant", 0)
    assert settings("l1_diff_notebook") == (1e-5, 0.0, "constant", 0)
    assert settings("diff_pruning") == (2e-4, 0.0, "constant", 0)


def test_a_recipe_s_name_is_not_part_of_a_job():
    assert job_folder(compose_config("config", "distill=bk_sdm")) == job_folder(compose_config("config", "distill=bk_sdm_v2"))
    paper = [compose_config("config", "scale=paper", f"distill={name}") for name in ("bk_sdm", "bk_sdm_v2")]
    assert job_folder(paper[0]) != job_folder(paper[1])


def test_a_teacher_of_audio_brings_its_own_spectrogram():
    chosen = (compose_config("config", "task=uag", f"teacher={name}") for name in ("small_uag", "audio_diffusion"))
    small, paper = map(checked, chosen)
    assert (small.task.sound.mels, small.task.data.sound.mels, small.task.features.sound.mels) == (64, 64, 64)
    assert instantiate(paper.task.sound).samples / paper.task.sound.sample_rate == pytest.approx(5.92, abs=0.01)


@pytest.mark.parametrize("experiment", [path for path in FILES if path.parts[0] == "experiment"], ids=str)
def test_jobs_of_several_seeds_have_the_same_samples(experiment):
    """Whose differences are compared in pairs."""
    seeds = {compose_config("config", choice(experiment), f"seed={seed}").evaluation.seed for seed in range(3)}
    assert len(seeds) == 1
