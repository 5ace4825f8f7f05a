"""Noise at random timesteps, which a denoiser learns to take away."""

from typing import Literal

import torch

from common.runtime.seeding import generator_for

TimestepDensity = Literal["uniform", "logit_normal"]


def noise_and_timesteps(
    seed: int, positions: torch.Tensor, latents: torch.Tensor, steps: int, density: TimestepDensity = "uniform"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise like `latents`, numbers of timesteps below `steps`, uniform numbers in [0, 1): per sample, seeded by its position.

    density: how timesteps are drawn: "logit_normal" visits the middle of the schedule more often, as the sigmoid of a normal
    number (Stable Diffusion 3, arXiv 2403.03206, section 3.1: location 0, scale 1).
    """
    noise, numbers, uniform = [], [], []
    for position in positions.tolist():
        generator = generator_for(seed, position)
        noise.append(torch.randn(latents.shape[1:], generator=generator))
        if density == "uniform":
            numbers.append(torch.randint(steps, (), generator=generator))
        else:
            numbers.append((steps * torch.randn((), generator=generator).sigmoid()).long().clamp_max(steps - 1))
        uniform.append(torch.rand((), generator=generator))
    return tuple(torch.stack(values).to(latents.device) for values in (noise, numbers, uniform))
