"""Training rows with noise on them: what criteria over the denoiser's error on data look at."""

from dataclasses import dataclass
from typing import Literal

import torch

from common.diffusion.noise_schedule import check_learns_from_noise, noise_process
from common.runtime.seeding import generator_for, mix_seed, seeded_normal
from common.scoring.calibration import Calibration, training_rows

Timesteps = Literal["even", "uniform"]


@dataclass(frozen=True)
class NoisyBatch:
    """Part of the calibration data with noise on it; `target` is what the denoiser should predict, `share` its weight."""

    latents: torch.Tensor
    timesteps: torch.Tensor
    conditions: dict[str, torch.Tensor]
    target: torch.Tensor
    share: float


def noisy_batches(calibration: Calibration, timesteps: str, batch_size: int, guided: bool, seed: int) -> list[NoisyBatch]:
    """The calibration's training latents in batches, each row with one timestep and noise seeded by (seed, row).

    timesteps: "even" spreads them over the schedule, "uniform" draws them. guided: every batch holds its rows twice, first
    with the empty condition. InputError for a calibration without training rows.
    """
    check_learns_from_noise(calibration.scheduler, "timestep_cond" in calibration.conditions)
    latents, conditions = training_rows(calibration.data)
    process = noise_process(calibration.scheduler)
    total, rows = process.steps, len(latents)
    generator = generator_for(seed, 1)
    if timesteps == "even":
        numbers = ((torch.arange(rows) + 0.5) * total / rows).long()[torch.randperm(rows, generator=generator)]
    else:
        numbers = torch.randint(total, (rows,), generator=generator)
    steps = process.timesteps(numbers.to(latents.device))
    noise = seeded_normal([mix_seed(seed, 2, row) for row in range(rows)], latents.shape[1:]).to(latents)
    noisy = process.add_noise(latents, noise, steps)
    target = process.target(latents, noise, steps)
    batches = []
    for start in range(0, rows, batch_size):
        chosen = slice(start, start + batch_size)
        own = {name: value[chosen] for name, value in conditions.items()}
        x, t = noisy[chosen], steps[chosen]
        if guided and own:
            own = {name: torch.cat([calibration.null_condition[name].expand_as(value), value]) for name, value in own.items()}
            x, t = torch.cat([x, x]), torch.cat([t, t])
        batches.append(NoisyBatch(x, t, own, target[chosen], len(target[chosen]) / rows))
    return batches
