"""Training rows: equal to encoding everything at once, for captioned, lazily read and mirrored data."""

from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from common.errors import InputError
from experiments.shared.job import Job
from experiments.training.cached_latents import stored, training_rows
from tests.commands import run, start
from tests.small_jobs import job, the_row

CONF = str(Path(__file__).resolve().parents[3] / "conf")


def compose(*overrides, name="config"):
    from experiments.shared.job_id import register_job_folder

    register_job_folder()
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        return hydra.compose(name, [*overrides])


def read(rows, count):
    return rows.__getitems__([(index, index) for index in range(count)])


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    lines = ["file_name,text"]
    (tmp_path / "images").mkdir()
    for index in range(23):
        pixels = generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((90, 70)).save(tmp_path / "images" / f"{index:02d}.png")
        lines.append(f"{index:02d}.png,thing {index}")
    (tmp_path / "images" / "metadata.csv").write_text("\n".join(lines))
    return tmp_path / "images"


def captioned(folder, outputs, *more):
    data = ["task/data=captioned_folder", f"task.data.folder={folder}", "task.data.size=64"]
    return compose(*data, f"outputs={outputs}", "training_rows.rows_per_shard=8", "training_rows.batch_size=4", *more)


def test_shipped_data_gives_what_encoding_at_once_gives(tiny_teacher, tmp_path):
    """Bit by bit, with several shards: a shard holds whole batches of images and of captions."""
    job = Job(compose("task.data.limit=40", "training_rows.rows_per_shard=128"))
    data = job.data("train")
    rows = training_rows(job, tiny_teacher, tmp_path)
    assert len(rows) == len(data) == 160 and len(list(tmp_path.glob("rows-*/*.safetensors"))) == 2
    batch = read(rows, len(data))
    assert torch.equal(batch["latents"], tiny_teacher.encode_images(data.images))
    assert torch.equal(batch["encoder_hidden_states"], tiny_teacher.encode_captions(data.captions)["encoder_hidden_states"])


def test_a_captioned_folder_and_its_mirror_images(tiny_teacher, folder, tmp_path):
    cfg = captioned(folder, tmp_path, "training_rows.flip=true", "task.data.test_folder=" + str(folder))
    job = Job(cfg)
    data = job.data("train")
    rows = training_rows(job, tiny_teacher, tmp_path)
    assert len(list(tmp_path.glob("rows-*/*.safetensors"))) == 3
    batch = read(rows, 23)
    images = data.images[:]
    plain, mirrored = tiny_teacher.encode_images(images, 4), tiny_teacher.encode_images(images.flip(3), 4)
    assert not torch.allclose(plain, mirrored, atol=1e-3)
    is_plain = (batch["latents"] - plain).abs().amax((1, 2, 3)) < 1e-5
    is_mirrored = (batch["latents"] - mirrored).abs().amax((1, 2, 3)) < 1e-5
    assert (is_plain ^ is_mirrored).all() and is_plain.any() and is_mirrored.any()
    states = tiny_teacher.encode_captions(data.captions)["encoder_hidden_states"]
    assert torch.allclose(batch["encoder_hidden_states"], states, atol=1e-6)
    stored = sum(path.stat().st_size for path in tmp_path.glob("rows-*/*.safetensors"))
    assert stored < 4 * (2 * plain.numel() + states.numel()) + 3 * 1000  # the conditions are there once


def test_half_precision_is_stored_and_float32_is_read(tiny_teacher, folder, tmp_path):
    whole, half = (captioned(folder, tmp_path, f"training_rows.dtype={name}") for name in ("float32", "float16"))
    batches = [read(training_rows(Job(cfg), tiny_teacher, tmp_path), 20) for cfg in (whole, half)]
    sizes = sorted(sum(path.stat().st_size for path in rows.iterdir()) for rows in tmp_path.glob("rows-*"))
    assert len(sizes) == 2 and sizes[0] < 0.6 * sizes[1]
    for name in ("latents", "encoder_hidden_states"):
        assert batches[1][name].dtype == torch.float32
        assert torch.equal(batches[1][name], batches[0][name].half().float())
        assert not torch.equal(batches[1][name], batches[0][name])


def test_rows_are_computed_once_and_follow_the_files(tiny_teacher, folder, tmp_path, capsys):

    cfg = captioned(folder, tmp_path)
    training_rows(Job(cfg), tiny_teacher, tmp_path)
    assert "encoding images" in capsys.readouterr().err
    training_rows(Job(cfg), tiny_teacher, tmp_path)
    assert "encoding images" not in capsys.readouterr().err
    otherwise = {"training_rows": {"verify": False, "workers": 2, "batch_size": 3}}
    training_rows(Job(OmegaConf.merge(cfg, otherwise)), tiny_teacher, tmp_path)
    assert len(list(tmp_path.glob("rows-*"))) == 1
    Image.fromarray(np.zeros((70, 90, 3), np.uint8)).save(folder / "00.png")
    training_rows(Job(cfg), tiny_teacher, tmp_path)
    assert len(list(tmp_path.glob("rows-*"))) == 2
    table = folder / "metadata.csv"
    table.write_text(table.read_text().replace("thing 4", "an apple"))
    rows, captions = (
        training_rows(Job(cfg), tiny_teacher, tmp_path),
        hydra.utils.instantiate(cfg.task.data, split="train").captions,
    )
    assert "an apple" in captions and len(list(tmp_path.glob("rows-*"))) == 3
    states = tiny_teacher.encode_captions(captions)["encoder_hidden_states"]
    assert torch.allclose(read(rows, len(captions))["encoder_hidden_states"], states, atol=1e-6)


def test_bad_settings_are_told(tiny_teacher, folder, tmp_path):
    expected = "become 4 x 4 x 4 latents, the teacher's are 4 x 8 x 8: give images of 64 x 64"
    with pytest.raises(InputError, match=expected):
        training_rows(Job(captioned(folder, tmp_path, "task.data.size=32")), tiny_teacher, tmp_path)
    assert not list(tmp_path.rglob("rows-*/*.safetensors"))
    cfg = compose("task=uig", "task/data=image_folder", f"task.data.folder={folder}", "task.data.size=64")
    with pytest.raises(InputError, match="takes captions, and the data of task=uig has none"):
        training_rows(Job(cfg), tiny_teacher, tmp_path)


def test_numbers_out_of_range_are_told():
    wide = torch.tensor([1.0, 1e6])
    with pytest.raises(InputError, match=r"float16 cannot hold latents of up to 1e\+06: give bfloat16 or float32"):
        stored(wide, "float16", "latents")
    assert stored(wide, "bfloat16", "latents").dtype == torch.bfloat16 and torch.equal(stored(wide, "float32", "x"), wide)
    assert stored(torch.arange(3), "float16", "ids").dtype == torch.int64


def test_the_papers_data_sets_compose_and_load(folder, capsys):
    for name, expected in {"laion_212k": "212,776", "laion_2m": "2,256,472", "coco_val2014": "30,000"}.items():
        cfg = compose("scale=paper", f"task/data={name}", f"task.data.folder={folder}")
        data = {split: hydra.utils.instantiate(cfg.task.data, split=split) for split in ("train", "test")}
        sizes = {split: len(part) for split, part in data.items()}
        assert sizes == {"train": 23, "test": 23}  # each is for one purpose, and whole
        assert data["train"].images.shape[1:] == (3, 512, 512)
        assert f"23 captioned images, and {expected} are expected of this data set" in capsys.readouterr().err
        assert cfg.training_rows.dtype == "float16" and cfg.training_rows.flip is True
    cfg = compose("scale=paper", "task=uig", "task/data=celeba_hq", f"task.data.folder={folder}")
    assert hydra.utils.instantiate(cfg.task.data, split="train").images.shape[1:] == (3, 256, 256)
    assert "23 images, and 30,000 are expected" in capsys.readouterr().err and cfg.training_rows.flip is False


@pytest.mark.exhaustive
def test_a_job_on_a_captioned_folder_with_rows_computed_ahead(tiny_teacher_folder, folder, tmp_path):
    """Two precomputing processes, then the job, which finds the rows; prompts come from a file."""
    data = ["task/data=captioned_folder", f"task.data.folder={folder}", "task.data.size=64", "training_rows.rows_per_shard=2"]
    ahead = ["-m", "experiments.precompute", f"teacher.path={tiny_teacher_folder}", f"outputs={tmp_path}", *data]
    both = [each.wait() for each in [start(*ahead, "task.data.limit=20") for _ in range(2)]]
    for each in both:
        assert each.returncode == 0, each.stderr[-2000:]
        assert "latents: 20 x 4 x 8 x 8" in each.stdout
    (tmp_path / "prompts.txt").write_text("\n".join(f"thing {index}\n" for index in range(16)))
    arguments = job("t2i", tiny_teacher_folder, tmp_path, *data, f"evaluation.prompts={tmp_path / 'prompts.txt'}")
    done = run(*arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "encoding images" not in done.stderr and "15 empty lines are left out, 16 prompts remain" in done.stderr
    _, row = the_row(tmp_path, "t2i/ld_pruner")
    assert row["settings"]["evaluation"]["prompts"] and "caption_retrieval" not in row["models"]["distilled"]
    assert row["protocol"]["guidance_scale"] == 2.0 and row["models"]["distilled"]["images"] == 16
    (tmp_path / "prompts.txt").write_text("\n".join(f"other {index}" for index in range(15)))
    fewer = run(*arguments)
    assert fewer.returncode == 2 and "evaluation.images=16 can be 15 at most" in fewer.stderr.strip().splitlines()[-1]


@pytest.mark.exhaustive
def test_an_image_folder_through_a_whole_job(tiny_uig_teacher_folder, folder, tmp_path):
    data = ["task/data=image_folder", f"task.data.folder={folder}", "task.data.size=64", "distill.steps=2"]
    done = run(*job("uig", tiny_uig_teacher_folder, tmp_path, *data))
    assert done.returncode == 0, done.stderr[-2000:]
    _, row = the_row(tmp_path, "uig/ld_pruner")
    assert row["models"]["real"]["reference_images"] == 10  # of 20 images half are held back for the floor
    assert row["protocol"]["guidance_scale"] is None and row["settings"]["task"]["data"]["size"] == 64
