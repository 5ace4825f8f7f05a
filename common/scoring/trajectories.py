"""What a denoiser makes of the calibration set: final latents, and noisy latents on the way to them."""

from collections.abc import Sequence

import torch
from torch import nn

from common.diffusion.noise_schedule import noise_process
from common.diffusion.sampling import denoise, is_guided
from common.pruning.plan import Edit
from common.runtime.seeding import mix_seed, seeded_normal
from common.scoring.calibration import Calibration
from common.scoring.edited_copies import edited_copies


def edited_latents(
    network: nn.Module,
    calibration: Calibration,
    chosen: slice,
    edits: Sequence[Edit] = (),
    tensors: dict[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Final latents (copies, conditions, samples, *latent) under the chosen conditions: copy i with edits[i] alone.

    Without edits there is one copy, the network as it is.
    """
    copies = max(1, len(edits))
    noise, conditions = calibration.rows(chosen, copies)
    guided = is_guided(conditions, calibration.guidance_scale)
    with edited_copies(network, edits, tensors or {}, groups=2 if guided else 1):
        latents = denoise(
            network,
            calibration.scheduler,
            noise,
            conditions,
            calibration.null_condition,
            calibration.steps,
            calibration.guidance_scale,
        )
    return latents.unflatten(0, (copies, -1, calibration.shape[1]))


def noisy_latents(
    network: nn.Module, calibration: Calibration, rows: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """(latents, timesteps, conditions) of `rows` rows at most: final latents of `network` with noise added again.

    The timesteps are spread evenly over the noise schedule; row i's noise is seeded by (seed, i).
    """
    chosen = slice(0, max(1, -(-rows // calibration.shape[1])))
    latents = edited_latents(network, calibration, chosen)[0].flatten(0, 1)[:rows]
    _, conditions = calibration.rows(chosen)
    process = noise_process(calibration.scheduler)
    total, count = process.steps, len(latents)
    timesteps = process.timesteps((torch.arange(count) * total // count + total // (2 * count)).to(latents.device))
    noise = seeded_normal([mix_seed(seed, row) for row in range(count)], latents.shape[1:]).to(latents)
    noisy = process.add_noise(latents, noise, timesteps)
    return noisy, timesteps, {name: value[:count] for name, value in conditions.items()}
