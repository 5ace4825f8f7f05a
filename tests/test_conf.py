"""Every YAML in conf/ is composed and resolved."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from experiments.jobs import job_folder, register_job_folder, teacher_content

CONF = Path(__file__).resolve().parent.parent / "conf"
ROOTS = {"additivity", "config", "precompute", "train_teacher"}
FILES = sorted(path.relative_to(CONF).with_suffix("") for path in CONF.rglob("*.yaml"))


def compose_config(name="config", *overrides):
    register_job_folder()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, overrides=list(overrides))


def choice(path):
    """The override that picks a file: conf/method/ld_pruner.yaml -> method=ld_pruner."""
    nested = path.parts[0] in ("experiment", "row")
    group, option = (path.parts[0], Path(*path.parts[1:])) if nested else (path.parent, path.name)
    return f"{group}={option}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_each_file_composes(path):
    lines = (CONF / path.with_suffix(".yaml")).read_text().splitlines()
    if str(path) in ROOTS:
        cfg = compose_config(str(path))
    elif path.parts[0] == "teacher_training":
        cfg = compose_config("train_teacher", f"task={path.name}")
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


def test_job_folder_follows_the_teachers_weights(tiny_teacher_folder, tmp_path):
    import shutil

    folders = [tmp_path / "a" / "tiny", tmp_path / "b" / "tiny"]
    for folder in folders:
        shutil.copytree(tiny_teacher_folder, folder)
    path = folders[1] / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    contents = [teacher_content(str(folder)) for folder in (tiny_teacher_folder, *folders)]
    assert contents[0] == contents[1] != contents[2]
    assert teacher_content("owner/name") == ""


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


def test_a_teacher_of_audio_brings_its_own_spectrogram():
    small, paper = (compose_config("config", "task=uag", f"teacher={name}") for name in ("small_uag", "audio_diffusion"))
    assert (small.task.sound.mels, small.task.data.sound.mels, small.task.features.sound.mels) == (64, 64, 64)
    assert instantiate(paper.task.sound).samples / paper.task.sound.sample_rate == pytest.approx(5.92, abs=0.01)
