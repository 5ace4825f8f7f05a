"""python -m experiments.train_teacher as a person starts it, with tiny networks: to the end, and after a kill."""

import json
import os
import shutil
from functools import partial

import pytest
import torch
from PIL import Image

from tests.commands import run

pytestmark = pytest.mark.slow

SHARED = [
    "+teacher_training.data.limit=24",
    "teacher_training.autoencoder.batch_size=4",
    "teacher_training.autoencoder.schedule.warmup=1",
    "teacher_training.autoencoder.network.norm_num_groups=2",
    "teacher_training.denoiser.batch_size=4",
    "teacher_training.denoiser.schedule.warmup=1",
    "teacher_training.denoiser.network.attention_head_dim=4",
    "teacher_training.denoiser.network.norm_num_groups=4",
    "teacher_training.checkpoint_every=2",
    "teacher_training.sample_every=4",
    "teacher_training.inference_steps=2",
    "teacher_training.trainer.accelerator=cpu",
]
SMALL = {
    "t2i": [
        "teacher_training.autoencoder.network.block_out_channels=[4,4,4]",
        "teacher_training.denoiser.network.block_out_channels=[8,8]",
        "+teacher_training.denoiser.network.down_block_types=[CrossAttnDownBlock2D,DownBlock2D]",
        "+teacher_training.denoiser.network.up_block_types=[UpBlock2D,CrossAttnUpBlock2D]",
        "teacher_training.denoiser.network.layers_per_block=1",
    ],
    "uig": [
        "teacher_training.autoencoder.network.block_out_channels=[4,4,4]",
        "teacher_training.autoencoder.network.num_vq_embeddings=64",
        "teacher_training.autoencoder.objective.revive_every=2",
        "teacher_training.denoiser.network.block_out_channels=[8,8,8]",
    ],
    "uag": [
        "teacher_training.autoencoder.network.block_out_channels=[4,4,4,4]",
        "teacher_training.denoiser.network.block_out_channels=[8,8,8]",
    ],
}
PARTS = {
    "t2i": ("StableDiffusionPipeline", {"unet", "vae", "scheduler", "text_encoder", "tokenizer"}, (4, 16, 16)),
    "uig": ("LDMPipeline", {"unet", "vqvae", "scheduler"}, (3, 16, 16)),
    "uag": ("LDMPipeline", {"unet", "vqvae", "scheduler"}, (8, 8, 8)),
}


def train(task, work, *more, autoencoder_steps=4, denoiser_steps=6, die_at=""):
    """The finished command; with `die_at`, one that ends as if killed when it has written that checkpoint."""
    steps = [
        f"teacher_training.autoencoder.steps={autoencoder_steps}",
        f"teacher_training.denoiser.steps={denoiser_steps}",
    ]
    arguments = ["-m", "experiments.train_teacher", f"task={task}", f"work={work}", f"out={work / 'out'}"]
    before = partial(die_when_saved, die_at) if die_at else None
    return run(*arguments, *SHARED, *SMALL[task], *steps, *more, before=before)


def die_when_saved(ending):
    """Lets the process end as if killed when it has written the checkpoint."""
    from common.training import fit as training

    save = training.WholeCheckpoints.save_checkpoint

    def save_and_die(self, checkpoint, path, storage_options=None):
        save(self, checkpoint, path)
        if str(path).endswith(ending):
            os._exit(9)

    training.WholeCheckpoints.save_checkpoint = save_and_die


@pytest.fixture(scope="module", params=sorted(PARTS))
def finished(request, tmp_path_factory):
    work = tmp_path_factory.mktemp(request.param)
    done = train(request.param, work)
    assert done.returncode == 0, done.stderr[-3000:]
    return request.param, work, done


def test_the_teacher_loads_and_is_a_plain_diffusers_folder(finished):
    from diffusers import DiffusionPipeline

    from common.models.loading import load_teacher

    task, work, done = finished
    pipeline_class, parts, latent_shape = PARTS[task]
    index = json.loads((work / "out" / "model_index.json").read_text())
    assert index["_class_name"] == pipeline_class
    assert {name for name, value in index.items() if isinstance(value, list) and value[0]} == parts
    teacher = load_teacher(str(work / "out"))
    assert teacher.latent_shape == latent_shape
    images = torch.randint(0, 256, (2, teacher.autoencoder.config.in_channels, 64, 64), dtype=torch.uint8)
    assert teacher.decode_latents(teacher.encode_images(images)).shape == images.shape
    stock = DiffusionPipeline.from_pretrained(work / "out", torch_dtype=torch.float32)
    (picture,) = stock(**({"prompt": "a red apple"} if task == "t2i" else {}), num_inference_steps=2).images
    assert picture.size == (64, 64)
    assert "dB PSNR" in done.stdout and str(work / "out") in done.stdout
    assert all("_name_or_path" not in path.read_text() for path in (work / "out").rglob("*.json"))


def test_the_teacher_comes_with_pictures_its_history_and_what_its_layers_do(finished):
    _, work, done = finished
    for name in ("samples.webp", "reconstructions.webp"):
        with Image.open(work / "out" / name) as picture:
            assert picture.width == 8 * 66
    (history,) = json.loads((work / "out" / "training.json").read_text())
    assert history["denoiser steps"] == 6 and history["held-out PSNR"] > 0
    assert (work / "samples_000004.png").is_file()
    assert history["first weights"] == "PyTorch's x 1.732, columns of skip connections x 0.4"
    (looked,) = [json.loads(line) for line in (work / "layers.jsonl").read_text().splitlines()]
    assert looked["step"] == 4 and min(looked["layers"].values()) > 0 and "step 4: loss" in done.stdout


def weights(work):
    from safetensors.torch import load_file

    return {path.relative_to(work): load_file(path) for path in sorted((work / "out").rglob("*.safetensors"))}


@pytest.mark.exhaustive
def test_killed_in_both_stages_the_weights_are_the_same(finished, tmp_path):
    task, whole, _ = finished
    if task == "t2i":  # the tokenizer's numbering differs from run to run (experiments/teacher_training/text_encoder.py)
        shutil.copytree(whole / "tokenizer", tmp_path / "tokenizer")
    for checkpoint in ("autoencoder/step=2.ckpt", "denoiser/step=4.ckpt"):
        killed = train(task, tmp_path, die_at=checkpoint)
        assert killed.returncode == 9, killed.stderr[-3000:]
        assert (tmp_path / checkpoint).is_file() and not (tmp_path / "out").exists()
    resumed = train(task, tmp_path)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    ours, theirs = weights(tmp_path), weights(whole)
    assert list(ours) == list(theirs) and len(ours) == {"t2i": 3, "uig": 2, "uag": 2}[task]
    for path, tensors in ours.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, theirs[path][name]), (path, name)


def test_other_settings_are_refused_and_named(finished):
    task, work, _ = finished
    done = train(task, work, "teacher_training.denoiser.batch_size=8")
    assert done.returncode == 2 and "was begun with other settings" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.exhaustive
def test_training_goes_on_from_a_finished_teacher(finished, tmp_path):
    task, work, _ = finished
    done = train(task, tmp_path, f"start={work / 'out'}", autoencoder_steps=2, denoiser_steps=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(json.loads((tmp_path / "out" / "training.json").read_text())) == 2
