"""What is drawn with settings that are honoured, against diffusers' own pipelines."""

import shutil

import pytest
import torch

from common.audio.spectrogram import Spectrogram
from common.diffusion.images import with_channels
from common.diffusion.latents import scale_latents
from common.diffusion.noise_schedule import noise_process, same_noise
from common.diffusion.sampling import is_guided, row_generators, sample_latents, with_guidance
from common.diffusion.text_encoding import tokenized
from common.errors import InputError
from common.models.loading import load_teacher
from common.models.saving import load_student, save_student
from common.runtime.seeding import seeded_normal
from tests.small_teachers import NOISE, change, pipeline_of, stable_diffusion

CAPTIONS = ["a red apple 5, noto style", "x", "a flag of a country far away, and more than fits"]
MEANS = {"scaling_factor": 0.5, "latents_mean": [-1.7, 1.9, -1.4, 2.5], "latents_std": [8.5, 5.9, 6.5, 5.2]}


def final_latents(teacher, seeds=(5, 6, 7), steps=4, guidance_scale=5.0, batch_size=3):
    captions = CAPTIONS[: len(seeds)] if teacher.text_encoder is not None else [""] * len(seeds)
    conditions, empty = teacher.encode_captions(captions), teacher.null_condition()
    arguments = (teacher.latent_shape, list(seeds), conditions, empty, steps, guidance_scale, batch_size)
    return sample_latents(teacher.denoiser, teacher.scheduler, *arguments)


def drawn(folder, teacher, output="latent", **options):
    """Of the pipeline, from the noise of final_latents' seeds."""
    noise = seeded_normal([5, 6, 7], teacher.latent_shape)
    return pipeline_of(folder)(CAPTIONS, latents=noise, num_inference_steps=4, output_type=output, **options).images


@pytest.fixture(scope="module")
def lcm_folder(tmp_path_factory):
    from diffusers import LCMScheduler

    folder = tmp_path_factory.mktemp("teachers") / "lcm"
    return stable_diffusion(folder, {"time_cond_proj_dim": 17}, None, LCMScheduler(**NOISE), "LatentConsistencyModelPipeline")


@torch.no_grad()
@pytest.mark.parametrize("guidance_scale", [1.0, 8.5])
def test_a_latent_consistency_model_is_told_its_guidance_scale(lcm_folder, guidance_scale):
    teacher = load_teacher(str(lcm_folder))
    generators = row_generators(seeded_normal([5, 6, 7], teacher.latent_shape))
    expected = drawn(lcm_folder, teacher, guidance_scale=guidance_scale, generator=generators)
    found = final_latents(teacher, guidance_scale=guidance_scale)
    assert torch.allclose(found, expected, atol=1e-5 * expected.abs().max())
    other = final_latents(teacher, guidance_scale=guidance_scale + 1)
    assert not torch.allclose(found, other, atol=1e-3 * expected.abs().max())


@torch.no_grad()
def test_the_embedding_of_a_guidance_scale_is_the_pipeline_s(lcm_folder):
    pipeline, teacher = pipeline_of(lcm_folder), load_teacher(str(lcm_folder))
    conditions = with_guidance(teacher.denoiser, teacher.encode_captions(CAPTIONS), 8.5)
    expected = pipeline.get_guidance_scale_embedding(torch.tensor(7.5).repeat(3), embedding_dim=17)
    assert torch.equal(conditions["timestep_cond"], expected)
    assert not is_guided(conditions, 8.5) and is_guided({"encoder_hidden_states": expected}, 8.5)


@torch.no_grad()
def test_a_latent_consistency_model_is_not_guided_on_top_by_stable_diffusion_s_pipeline_either(tmp_path):
    folder = stable_diffusion(tmp_path / "teacher", {"time_cond_proj_dim": 16})
    teacher = load_teacher(str(folder))
    expected = drawn(folder, teacher, guidance_scale=5.0)
    assert torch.allclose(final_latents(teacher), expected, atol=1e-5 * expected.abs().max())


def test_a_latent_consistency_model_is_not_trained(lcm_folder):
    from common.diffusion.noise_schedule import check_learns_from_noise
    from common.scoring.calibration import build_calibration
    from common.scoring.noisy_batches import noisy_batches
    from experiments.dry_run.job_cost import JobCost
    from experiments.shared.settings import typed_settings
    from tests.test_conf import compose_config

    teacher = load_teacher(str(lcm_folder))
    with pytest.raises(InputError, match=r"latent consistency model.*distill=none"):
        check_learns_from_noise(teacher.scheduler, False)
    with pytest.raises(InputError, match="latent consistency model"):
        JobCost(typed_settings(compose_config("config", "task=t2i", f"teacher.path={lcm_folder}")))
    rows = torch.zeros(2, 4, 8, 8), teacher.encode_captions(CAPTIONS[:2])
    conditions = with_guidance(teacher.denoiser, teacher.encode_captions(CAPTIONS[:2]), 3.0)
    sizes = {"num_conditions": 2, "samples": 1, "steps": 2, "guidance_scale": 3.0, "seed": 0}
    calibration = build_calibration(conditions, {}, teacher.latent_shape, teacher.scheduler, **sizes, data=lambda: rows)
    with pytest.raises(InputError, match="latent consistency model"):
        noisy_batches(calibration, "even", 2, False, 0)


def test_scores_of_a_latent_consistency_model_are_of_it_as_it_is_sampled(lcm_folder):
    from common.cost.macs import count_macs, probe_inputs
    from common.pruning.plan import Edit
    from common.scoring.calibration import build_calibration
    from common.scoring.trajectories import edited_latents

    teacher = load_teacher(str(lcm_folder))
    conditions = with_guidance(teacher.denoiser, teacher.encode_captions(CAPTIONS[:2]), 3.0)
    sizes = {"num_conditions": 2, "samples": 2, "steps": 1, "guidance_scale": 3.0, "seed": 0}
    calibration = build_calibration(conditions, teacher.null_condition(), teacher.latent_shape, teacher.scheduler, **sizes)
    edits = [Edit("down_blocks.0.attentions.0", "identity"), Edit("mid_block.resnets.0", "shortcut")]
    with torch.no_grad():
        both = edited_latents(teacher.denoiser, calibration, slice(0, 2), edits)
        alone = [edited_latents(teacher.denoiser, calibration, slice(0, 2), [edit])[0] for edit in edits]
    assert torch.allclose(both, torch.stack(alone), atol=1e-5)
    inputs, probe = probe_inputs(teacher.denoiser, teacher.null_condition())
    assert probe["timestep_cond"].shape == (1, 17) and count_macs(teacher.denoiser, inputs, probe).total > 0


@torch.no_grad()
def test_means_and_deviations_of_latents_are_those_of_the_pipeline_of_stable_diffusion_xl(tiny_sdxl_folder, tmp_path):
    folder = shutil.copytree(tiny_sdxl_folder, tmp_path / "teacher")
    change(folder, "vae/config.json", **MEANS)
    teacher = load_teacher(str(folder))
    images = torch.from_numpy(drawn(folder, teacher, "np", guidance_scale=5.0)).permute(0, 3, 1, 2)
    found = teacher.decode(final_latents(teacher)) / 2 + 0.5
    assert torch.allclose(found.clamp(0, 1), images, atol=1e-4)
    plain = load_teacher(str(tiny_sdxl_folder))
    assert not torch.allclose(found, plain.decode(final_latents(teacher)) / 2 + 0.5, atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("entries", [MEANS, {"shift_factor": 0.4, "scaling_factor": 1.5}])
def test_latents_are_normalised_and_back(tiny_teacher_folder, tmp_path, entries):
    folder = shutil.copytree(tiny_teacher_folder, tmp_path / "teacher")
    change(folder, "vae/config.json", **entries)
    teacher, images = load_teacher(str(folder)), torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    encoded = teacher.autoencoder.encode(images.float() / 127.5 - 1).latent_dist.mean
    if "shift_factor" in entries:
        expected = (encoded - 0.4) * 1.5
    else:
        mean, std = (torch.tensor(entries[name])[:, None, None] for name in ("latents_mean", "latents_std"))
        expected = (encoded - mean) * 0.5 / std
    latents = teacher.encode_images(images)
    assert torch.allclose(latents, expected, atol=1e-6)
    assert torch.allclose(teacher.decode(latents), teacher.autoencoder.decode(encoded).sample, atol=1e-5)
    assert torch.equal(scale_latents(teacher.autoencoder, encoded), latents)
    save_student(teacher, teacher, tmp_path / "student")
    assert torch.equal(load_student(teacher, tmp_path / "student").encode_images(images), latents)


@torch.no_grad()
@pytest.mark.parametrize("vectors", [1, 4])
def test_a_concept_of_several_vectors_is_all_of_its_tokens(tmp_path, vectors):
    folder = stable_diffusion(tmp_path / "teacher", vectors=vectors)
    teacher, pipeline = load_teacher(str(folder)), pipeline_of(folder)
    caption = "a <cat-toy> 5"
    added = set(range(teacher.text_encoder.config.vocab_size - vectors, teacher.text_encoder.config.vocab_size))
    ids = tokenized(teacher.tokenizer, [caption, "no such thing"]).input_ids
    assert added <= set(ids[0].tolist()) and not added & set(ids[1].tolist())
    expected = pipeline.encode_prompt([caption], "cpu", 1, False)[0]
    assert torch.equal(teacher.encode_captions([caption])["encoder_hidden_states"], expected)


@torch.no_grad()
def test_stable_diffusion_s_pipeline_mends_old_schedulers(tmp_path):
    from diffusers import DDIMScheduler

    folder = stable_diffusion(tmp_path / "teacher", scheduler=DDIMScheduler(**NOISE))
    change(folder, "scheduler/scheduler_config.json", clip_sample=..., steps_offset=...)
    teacher = load_teacher(str(folder))
    assert (teacher.scheduler.config.clip_sample, teacher.scheduler.config.steps_offset) == (False, 1)
    expected = drawn(folder, teacher, guidance_scale=5.0)
    assert torch.allclose(final_latents(teacher), expected, atol=1e-4 * expected.abs().max())


def test_the_size_of_latents_is_the_pipeline_s(tiny_sdxl_folder, tiny_teacher_folder, tmp_path):
    extra_large = shutil.copytree(tiny_sdxl_folder, tmp_path / "xl")
    change(extra_large, "unet/config.json", sample_size=None)
    assert load_teacher(str(extra_large)).latent_shape == (4, 128, 128)
    assert pipeline_of(extra_large).default_sample_size in (None, 128)
    early = shutil.copytree(tiny_teacher_folder, tmp_path / "early")
    change(early, "unet/config.json", _diffusers_version="0.6.0", sample_size=32)
    assert load_teacher(str(early)).latent_shape == (4, 64, 64)
    assert pipeline_of(early).unet.config.sample_size == 64


def test_the_size_of_a_student_without_weights_of_its_own_is_the_teacher_s(tiny_sdxl_folder, tmp_path):
    folder = shutil.copytree(tiny_sdxl_folder, tmp_path / "xl")
    change(folder, "unet/config.json", sample_size=None)
    teacher = load_teacher(str(folder))
    save_student(teacher, teacher, tmp_path / "student")
    assert load_student(teacher, tmp_path / "student").latent_shape == (4, 128, 128)


@torch.no_grad()
def test_a_teacher_of_wide_images_draws_as_the_pipeline(tmp_path):
    folder = stable_diffusion(tmp_path / "teacher", {"sample_size": [8, 16]})
    teacher = load_teacher(str(folder))
    assert teacher.latent_shape == (4, 8, 16) and teacher.image_size == (64, 128)
    expected = drawn(folder, teacher, guidance_scale=5.0)
    found = final_latents(teacher)
    assert found.shape == (3, 4, 8, 16) and torch.allclose(found, expected, atol=1e-4 * expected.abs().max())
    images = teacher.decode_latents(found)
    assert images.shape == (3, 3, 64, 128) and teacher.encode_images(images).shape == found.shape


@torch.no_grad()
def test_grey_teachers_take_colour_images_by_their_luma(tmp_path):
    import numpy
    from PIL import Image

    from common.metrics.similarity import peak_signal_to_noise
    from l1_diff.gradients import reconstruction_losses

    folder = stable_diffusion(tmp_path / "teacher", vae={"in_channels": 1, "out_channels": 1})
    teacher = load_teacher(str(folder))
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    grey = [numpy.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")) for image in images]
    expected = torch.from_numpy(numpy.stack(grey))[:, None]
    assert torch.equal(with_channels(images, 1), expected)
    assert torch.equal(teacher.encode_images(images), teacher.encode_images(expected))
    assert teacher.decode_latents(torch.randn(2, 4, 8, 8)).shape == (2, 1, 64, 64)
    assert peak_signal_to_noise(teacher.autoencoder, images) == peak_signal_to_noise(teacher.autoencoder, expected)
    losses = [[loss() for _, loss in reconstruction_losses(teacher.autoencoder, each, 2)] for each in (images, expected)]
    assert losses[0] == losses[1]
    assert with_channels(expected, 3).shape == images.shape and torch.equal(with_channels(expected, 3)[:, 2:], expected)


def test_audio_diffusion_s_own_spectrograms_are_read(tiny_uag_teacher_folder, tmp_path):
    folder = shutil.copytree(tiny_uag_teacher_folder, tmp_path / "teacher")
    settings = {"x_res": 128, "y_res": 64, "sample_rate": 44100, "n_fft": 4096, "hop_length": 1024, "top_db": 90}
    change(folder, "mel/mel_config.json", **settings)
    assert load_teacher(str(folder)).sound == Spectrogram(44100, 4096, 1024, mels=64, frames=128, range_db=90)
    (folder / "mel" / "mel_config.json").write_text("{}")
    assert load_teacher(str(folder)).sound == Spectrogram(22050, 2048, 512, mels=256, frames=256, range_db=80)
    change(folder, "mel/mel_config.json", hop_length=0)
    with pytest.raises(InputError, match="hop_length=0: a number above 0"):
        load_teacher(str(folder))


@pytest.mark.parametrize("kind", ["DDPMScheduler", "DDIMScheduler", "EulerDiscreteScheduler"])
def test_noise_is_the_teacher_s_in_every_scheduler(kind):
    """LCM's defaults are Stable Diffusion's noise; a file may leave them out, and DDPM's own are others."""
    import diffusers

    lcm = diffusers.LCMScheduler.from_config({})
    found = same_noise(getattr(diffusers, kind), lcm)
    assert torch.equal(found.betas, lcm.betas) and not torch.equal(
        getattr(diffusers, kind).from_config(lcm.config).betas, lcm.betas
    )
    assert torch.equal(noise_process(lcm).signal, lcm.alphas_cumprod)


@torch.no_grad()
def test_latent_diffusion_s_pipeline_draws_alike(tiny_uig_teacher_folder, tmp_path):
    folder = shutil.copytree(tiny_uig_teacher_folder, tmp_path / "teacher")
    change(folder, "vqvae/config.json", scaling_factor=0.7)
    teacher, pipeline = load_teacher(str(folder)), pipeline_of(folder)
    noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    expected = pipeline(2, generator=torch.Generator().manual_seed(3), num_inference_steps=4, output_type="np").images
    arguments = (teacher.denoiser, teacher.scheduler, teacher.latent_shape, [0, 1], {}, {}, 4, 1.0, 2)
    found = teacher.decode(sample_latents(*arguments, draw=lambda seeds, shape: noise)) / 2 + 0.5
    assert torch.allclose(found.clamp(0, 1), torch.from_numpy(expected).permute(0, 3, 1, 2), atol=1e-4)


@pytest.mark.parametrize("name", ["emoji_t2i", "emoji_dit", "earth_uig", "music_uag"])
def test_shipped_teachers_draw_as_diffusers_loads_them(name):
    from diffusers import DiffusionPipeline

    from common.runtime.files import SHIPPED

    pipeline = DiffusionPipeline.from_pretrained(SHIPPED / name)
    pipeline.set_progress_bar_config(disable=True)
    given = ["a red apple"] if name.startswith("emoji") else []
    options = {"max_sequence_length": 16, "use_resolution_binning": False} if name == "emoji_dit" else {}  # as its card says
    images = pipeline(*given, num_inference_steps=1, output_type="np", **options).images
    assert images.shape[:3] == (1, 64, 64) and images.std() > 0
