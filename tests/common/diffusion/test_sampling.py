import os

import pytest
import torch

from common.diffusion.sampling import sample_latents


def draw(teacher, seeds, batch_size, guidance_scale=2.0, steps=3):
    captions = [f"a red apple {seed}, noto style" for seed in seeds]
    return sample_latents(
        teacher.denoiser,
        teacher.scheduler,
        teacher.latent_shape,
        seeds,
        teacher.encode_captions(captions),
        teacher.null_condition(),
        steps,
        guidance_scale,
        batch_size,
    )


def test_neither_batch_size_nor_neighbours_change_a_sample(tiny_teacher):
    whole = draw(tiny_teacher, [5, 6, 7, 8, 9], 5)
    assert torch.allclose(draw(tiny_teacher, [5, 6, 7, 8, 9], 2), whole, atol=1e-5)
    assert torch.allclose(draw(tiny_teacher, [7], 1), whole[2:3], atol=1e-5)
    assert not torch.allclose(whole[0], whole[1], atol=1e-2)


def test_guidance_matches_the_diffusers_pipeline(tiny_teacher, tiny_teacher_folder):
    from diffusers import StableDiffusionPipeline

    from common.runtime.seeding import seeded_normal

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_teacher_folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        ["a red apple 5, noto style"],
        latents=seeded_normal([5], tiny_teacher.latent_shape),
        num_inference_steps=4,
        guidance_scale=3.0,
        output_type="latent",
    ).images
    assert torch.allclose(draw(tiny_teacher, [5], 1, guidance_scale=3.0, steps=4), expected, atol=1e-4)


def test_a_scheduler_that_draws_noise_depends_on_the_row_alone(tiny_teacher):
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler.from_config(tiny_teacher.scheduler.config)
    seeds = [5, 6, 7]
    conditions = tiny_teacher.encode_captions(["a", "b", "c"])
    drawn = [
        sample_latents(tiny_teacher.denoiser, scheduler, tiny_teacher.latent_shape, seeds, conditions, {}, 3, 1.0, size)
        for size in (1, 3, 3)
    ]
    assert torch.equal(drawn[1], drawn[2])
    assert torch.allclose(drawn[0], drawn[1], atol=1e-4)


@pytest.mark.exhaustive
def test_a_scheduler_is_described_alike_in_every_process():
    import subprocess
    import sys

    script = (
        "from diffusers import PNDMScheduler; from common.diffusion.sampling import describe_scheduler; "
        "print(describe_scheduler(PNDMScheduler(beta_schedule='scaled_linear', skip_prk_steps=True)))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1 and "PNDMScheduler" in found.pop()
