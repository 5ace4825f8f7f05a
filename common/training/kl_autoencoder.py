"""The autoencoder of Stable Diffusion: latents drawn from a posterior that is held near the standard normal."""

from typing import Any

import torch

from common.runtime.seeding import mix_seed, seeded_normal
from common.training.autoencoder import AutoencoderTraining


class KLTraining(AutoencoderTraining):
    """Adds the Kullback-Leibler term per latent element, weighted by `kl_weight`. For diffusers' AutoencoderKL."""

    def __init__(self, *arguments: Any, kl_weight: float, **options: Any):
        super().__init__(*arguments, **options)
        self.kl_weight = kl_weight

    def reconstruct(self, images: torch.Tensor, positions: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        posterior = self.autoencoder.encode(images).latent_dist
        seeds = [mix_seed(self.seed, position) for position in positions]
        noise = seeded_normal(seeds, posterior.mean.shape[1:]).to(images)
        decoded = self.autoencoder.decode(posterior.mean + posterior.std * noise).sample
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        self.log("kl", kl, sync_dist=True)
        return decoded, self.kl_weight * kl

    @torch.no_grad()
    def normalize_latents(self, latents: torch.Tensor) -> None:
        """Each channel of zero mean and unit deviation; the posterior's deviation shrinks along."""
        mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        outward, inward = self.autoencoder.quant_conv, self.autoencoder.post_quant_conv
        channels = len(mean)
        outward.weight[:channels] /= std[:, None, None, None]
        outward.bias[:channels] = (outward.bias[:channels] - mean) / std
        outward.bias[channels:] -= 2 * std.log()
        inward.bias += (inward.weight[:, :, 0, 0] * mean).sum(1)
        inward.weight *= std[None, :, None, None]
        self.autoencoder.register_to_config(scaling_factor=1.0)
