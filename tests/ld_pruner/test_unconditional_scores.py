"""Scores of an unconditional teacher's attention, against a sampling loop and equations 1 to 7 written out here."""

import numpy
import pytest
import torch
from diffusers import DDIMScheduler

from common.models.loading import load_teacher
from common.scoring.calibration import build_calibration
from ld_pruner.operators import list_operators
from ld_pruner.scoring import LatentScorer

STEPS, SAMPLES = 3, 4


@torch.no_grad()
def sampled(unet, settings, noise):
    """Final latents by diffusers' scheduler alone."""
    scheduler = DDIMScheduler.from_config(settings)
    scheduler.set_timesteps(STEPS)
    latents = noise * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        latents = scheduler.step(unet(latents, timestep).sample, timestep, latents).prev_sample
    return latents.double().numpy()


def test_the_score_is_of_the_network_whose_attention_adds_nothing(tiny_uig_teacher_folder):
    teacher = load_teacher(str(tiny_uig_teacher_folder))
    unet = teacher.denoiser
    sizes = {"num_conditions": 1, "samples": SAMPLES, "steps": STEPS, "guidance_scale": 1.0, "seed": 0}
    calibration = build_calibration({}, {}, teacher.latent_shape, teacher.scheduler, **sizes)
    operators = list_operators(unet, "attention", residual="zero")[::5]
    found = LatentScorer(unet, calibration, {}, rows=SAMPLES).score_pairs(operators, slice(0, 1))
    noise = calibration.noise[0]
    before = sampled(unet, teacher.scheduler.config, noise)
    for operator, score in zip(operators, found[:, 0].tolist(), strict=True):
        last = unet.get_submodule(operator.site).to_out[0]
        kept = last.weight.detach().clone(), last.bias.detach().clone()
        with torch.no_grad():
            last.weight.zero_(), last.bias.zero_()
        after = sampled(unet, teacher.scheduler.config, noise)
        with torch.no_grad():
            last.weight.copy_(kept[0]), last.bias.copy_(kept[1])
        means, spreads = (abs(numpy.linalg.norm(f(before, 0) - f(after, 0))) for f in (numpy.mean, numpy.std))
        assert score == pytest.approx(means + spreads, rel=1e-3), operator.site
