"""What a denoiser learns: noise at random timesteps, and the target that the prediction is compared with."""

from typing import Any

import torch

from common.errors import InputError
from common.runtime.seeding import generator_for


def noise_and_timesteps(
    seed: int, positions: torch.Tensor, latents: torch.Tensor, num_timesteps: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise like `latents`, timesteps and a uniform number in [0, 1), each per sample and seeded by its position."""
    noise, timesteps, uniform = [], [], []
    for position in positions.tolist():
        generator = generator_for(seed, position)
        noise.append(torch.randn(latents.shape[1:], generator=generator))
        timesteps.append(torch.randint(num_timesteps, (), generator=generator))
        uniform.append(torch.rand((), generator=generator))
    return tuple(torch.stack(values).to(latents.device) for values in (noise, timesteps, uniform))


def training_target(scheduler: Any, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """What the denoiser should predict, by the scheduler's prediction_type."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    if kind == "sample":
        return latents
    raise InputError(f"prediction_type={kind!r} of the scheduler is none of epsilon, v_prediction, sample.")
