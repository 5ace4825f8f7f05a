"""A job's name follows what it is made of, and nothing else."""

import json
import shutil
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from common.data.emoji import load_emoji
from common.errors import InputError
from experiments.shared.identity import by_value
from experiments.shared.job import Job
from experiments.shared.job_id import check_unchanged, chosen, job_folder, job_settings
from experiments.shared.settings_check import checked
from experiments.training.cached_latents import row_shards
from ld_pruner.method import LDPruner
from tests.test_conf import compose_config

composed = cache(compose_config)


def name(*overrides):
    cfg = composed("config", *overrides)
    return job_folder(checked(cfg), chosen(cfg, "method"))


def change(path, at=None):
    """A block in the middle becomes another; the size stays."""
    content = bytearray(path.read_bytes())
    at = len(content) // 2 if at is None else at
    content[at : at + 4] = bytes(255 - byte for byte in content[at : at + 4])
    path.write_bytes(content)


@pytest.fixture
def teacher(tiny_teacher_folder, tmp_path):
    return Path(shutil.copytree(tiny_teacher_folder, tmp_path / "teacher"))


PARTS = ["unet/diffusion_pytorch_model.safetensors", "vae/config.json", "tokenizer/tokenizer.json", "model_index.json"]


@pytest.mark.parametrize("part", PARTS)
def test_a_teacher_changed_in_place_is_another_job(teacher, part):
    before = name(f"teacher.path={teacher}")
    change(teacher / part)
    assert name(f"teacher.path={teacher}") != before


@pytest.mark.parametrize(
    "file", ["unet/model-00002-of-00003.safetensors", "unet/diffusion_pytorch_model.bin", "tokenizer/merges.txt", "a/b/c.json"]
)
def test_every_file_of_a_teacher_counts(teacher, file):
    (teacher / file).parent.mkdir(parents=True, exist_ok=True)
    (teacher / file).write_bytes(bytes(3 * 2**20))
    before = name(f"teacher.path={teacher}")
    change(teacher / file)
    assert name(f"teacher.path={teacher}") != before


def test_a_teacher_is_the_same_wherever_it_lies(teacher, tmp_path, monkeypatch):
    before = name(f"teacher.path={teacher}")
    copied = shutil.copytree(teacher, tmp_path / "home" / "copy")
    (copied / "README.md").write_text("a card")
    Image.new("RGB", (8, 8)).save(copied / "samples.png")
    (tmp_path / "link").symlink_to(copied)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for path in ("'~/copy'", "link", "teacher", "./teacher/", copied):
        assert name(f"teacher.path={path}") == before, path
    change(copied / "unet" / "diffusion_pytorch_model.safetensors")
    assert name("teacher.path='~/copy'") == name("teacher.path=link") != before
    assert name("teacher.path=emoji_t2i") == name("teacher.path=teachers/emoji_t2i")


def test_a_hub_s_teacher_is_known_by_its_commit(monkeypatch):
    from huggingface_hub import HfApi

    from common.models import hub

    commits = {None: "a" * 40, "main": "a" * 40, "v2": "b" * 40}
    told = type("Info", (), {})
    monkeypatch.setattr(hub, "COMMITS", {})

    def repo_info(self, repository, revision, repo_type):
        told.sha = commits[revision]
        return told

    monkeypatch.setattr(HfApi, "repo_info", repo_info)
    names = [name("teacher.path=owner/name", f"teacher.revision={r}") for r in ("null", "main", "v2", "a" * 40)]
    assert names[0] == names[1] == names[3] != names[2]
    commits[None] = "c" * 40
    assert name("teacher.path=owner/name") == names[0]  # asked once in a process
    hub.COMMITS.clear()
    assert name("teacher.path=owner/name") != names[0]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(20):
        draw(folder / f"{index:02d}.bmp", index)
    return folder


def draw(path, shade):
    Image.fromarray(np.full((64, 64, 3), shade, np.uint8)).save(path)


def of_images(folder, *more):
    return "task=uig", "task/data=image_folder", f"task.data.folder={folder}", "task.data.size=64", *more


def test_images_replaced_or_added_are_another_job(images, tmp_path):
    before = name(*of_images(images))
    assert before == name(*of_images(shutil.copytree(images, tmp_path / "copy")))
    draw(images / "03.bmp", 200)
    replaced = name(*of_images(images))
    draw(images / "20.bmp", 7)
    added = name(*of_images(images))
    (images / "00.bmp").rename(images / "21.bmp")
    assert len({before, replaced, added, name(*of_images(images))}) == 4


def test_images_are_not_decoded_for_a_name(images, monkeypatch):
    monkeypatch.setattr("common.data.lazy_images.open_picture", None)
    monkeypatch.setattr(Image, "open", None)
    assert name(*of_images(images)).startswith("uig/ld_pruner/")


def test_outputs_inside_of_a_data_folder_are_no_data(images):
    before = name(*of_images(images, f"outputs={images}/outputs"))
    (images / "outputs" / "uig").mkdir(parents=True)
    draw(images / "outputs" / "uig" / "samples.bmp", 1)
    assert name(*of_images(images, f"outputs={images}/outputs")) == before


OF_FILES = {
    "captioned_folder": ("t2i", "folder", "metadata.csv"),
    "captioned_folder, apart": ("t2i", "test_folder", "metadata.csv"),
    "audio_folder": ("uag", "folder", "deep/a.wav"),
    "webdataset": ("t2i", "folder", "00000.tar"),
    "hf_dataset": ("t2i", "path", "data.parquet"),
    "emoji": ("t2i", "folder", "noto.webp"),
    "earth": ("uig", "folder", "index.json"),
    "music": ("uag", "folder", "music.webp"),
}


@pytest.mark.parametrize("data", OF_FILES)
def test_every_kind_of_data_counts_by_its_content(data, tmp_path):
    task, setting, file = OF_FILES[data]
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(bytes(1000))
    overrides = f"task={task}", f"task/data={data.partition(',')[0]}", f"task.data.{setting}={tmp_path}"
    before = name(*overrides)
    assert before == name(*overrides)
    change(tmp_path / file)
    assert name(*overrides) != before


def test_shared_latents_follow_images_replaced_in_place(tiny_teacher, images, tmp_path):
    def folder():
        cfg = compose_config("config", *of_images(images))
        return row_shards(Job(cfg), tiny_teacher, tmp_path)[0].path.parent

    before = folder()
    assert before == folder()
    change(images / "03.bmp", 5000)
    assert before != folder()


def test_what_changes_while_a_job_begins_is_told(teacher, images, tmp_path):
    overrides = f"teacher.path={teacher}", *of_images(images), f"outputs={tmp_path / 'outputs'}"
    cfg = compose_config("config", *overrides)
    folder = tmp_path / "outputs" / job_folder(cfg)
    check_unchanged(job_settings(cfg), cfg.outputs, "ld_pruner", folder)
    check_unchanged(job_settings(cfg), cfg.outputs, "ld_pruner", tmp_path / "a folder of one's own")
    change(images / "03.bmp")
    with pytest.raises(InputError, match="have changed since this command began; run it again"):
        check_unchanged(job_settings(cfg), cfg.outputs, "ld_pruner", folder)


LAPTOP = "method=laptop_diff"
EQUAL = [
    ([LAPTOP, "method.ratio=0.3"], [LAPTOP, "method.ratio=0.30000000000000004"]),
    (["distill.optimizer.lr=1e-3"], ["distill.optimizer.lr=0.001"]),
    (["method.k=8"], ["method.k=8.0"]),
    (["method.squared=true"], ["method.squared=True"]),
    (["evaluation.prompts=null"], ["evaluation.prompts=None"]),
    (["method=l1_diff", "method.parts=[denoiser,autoencoder]"], ["method=l1_diff", "method.parts=[autoencoder,denoiser]"]),
    (["method.kinds=[resnet,attention]"], ["method.kinds=[attention,resnet,resnet]"]),
    (["evaluation.more_steps=[10,50]"], ["evaluation.more_steps=[50,10]"]),
    (["metrics=[fid,clip_score]"], ["metrics=[]"]),
    (["evaluation.scheduler={name: DDIM, steps_offset: 1}"], ["evaluation.scheduler={steps_offset: 1, name: DDIM}"]),
]


@pytest.mark.parametrize(("one", "other"), EQUAL, ids=str)
def test_equal_settings_are_one_job(one, other):
    assert name(*one) == name(*other)


OTHER = [
    ["method.k=8"],
    ["method.squared=true"],
    ["method.exclude=[mid_block.*]"],
    [LAPTOP],
    ["method=magnitude"],
    ["method=random_layers"],
    ["method=random_layers", "seed=1"],
    ["distill.feature_loss._target_=laptop_diff.feature_loss.NormalizedFeatureLosses"],
    ["distill.features=[up_blocks.*,down_blocks.*,mid_block]"],
    ["task=uig"],
]


def test_other_settings_are_other_jobs():
    names = [name(), *(name(*overrides) for overrides in OTHER)]
    assert len({each.rpartition("/")[2] for each in names}) == len(names)


def test_a_class_that_moved_has_the_same_job_and_another_class_has_not(monkeypatch):
    elsewhere = ModuleType("elsewhere")
    elsewhere.LDPruner, elsewhere.Another, elsewhere.load_emoji = LDPruner, LDPruner, load_emoji
    monkeypatch.setitem(sys.modules, "elsewhere", elsewhere)
    before = name()
    for target in ("method._target_=elsewhere.LDPruner", "task.data._target_=elsewhere.load_emoji"):
        assert name(target) == before
    another = name("method._target_=elsewhere.Another")
    assert another != before and another.startswith("t2i/ld_pruner/")


def test_a_method_s_folder_is_the_option_that_was_chosen(tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "my_method.yaml").write_text("_target_: baselines.dense.Dense\n")
    found = name("method=my_method", "distill=dense", f"hydra.searchpath=[file://{tmp_path}]")
    plain = name("method=dense", "distill=dense")
    assert found.startswith("t2i/my_method/") and plain.startswith("t2i/dense/")
    assert found.rpartition("/")[2] != plain.rpartition("/")[2]


def test_numbers_are_rounded_in_what_is_used_and_recorded():
    cfg = composed("config", LAPTOP, "method.ratio=0.30000000000000004", "calibration.guidance_scale=${method.ratio}")
    settings = job_settings(checked(cfg))
    assert settings["method"]["ratio"] == settings["calibration"]["guidance_scale"] == 0.3
    assert "0000000" not in json.dumps(settings)


def test_a_job_has_one_name_before_and_after_its_settings_are_checked():
    for overrides in ([], [LAPTOP, "method.ratio=0.1"], ["task=uag", "method=l1_diff"]):
        cfg = composed("config", *overrides)
        assert job_folder(checked(cfg), chosen(cfg, "method")) == job_folder(cfg)


def test_values_are_told_apart_and_written_alike():
    assert by_value({"a": (1.0, 1e-3, -0.0)}) == {"a": [1, 0.001, 0]}
    assert by_value([1e-300, 0.1 + 0.2, 2**60, 1e22]) == [1e-300, 0.3, 2**60, 10**22]
    different = [1, True, "1", None, "None", 0.1, [1], [[1]], {"1": 1}, 1.0000001]
    assert len({json.dumps(by_value(value)) for value in different}) == len(different)
