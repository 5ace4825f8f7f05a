"""Trains a teacher's autoencoder: pixels to latents and back."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from common.batches import mix_seed, seeded_normal


class AutoencoderTraining(L.LightningModule):
    """L1 and squared error in pixels, and the Kullback-Leibler term per latent element, weighted by `kl_weight`.

    Batches are dictionaries with `images`, uint8 (batch, 3, height, width), and `position` (common.batches).
    """

    def __init__(
        self,
        autoencoder: AutoencoderKL,
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Callable[[torch.optim.Optimizer], Any],
        kl_weight: float,
        seed: int,
    ):
        super().__init__()
        self.autoencoder = autoencoder
        self.make_optimizer, self.make_schedule = optimizer, schedule
        self.kl_weight, self.seed = kl_weight, seed

    def training_step(self, batch: dict[str, torch.Tensor], batch_index: int) -> torch.Tensor:
        images = batch["images"].float() / 127.5 - 1
        posterior = self.autoencoder.encode(images).latent_dist
        seeds = [mix_seed(self.seed, position) for position in batch["position"].tolist()]
        noise = seeded_normal(seeds, posterior.mean.shape[1:]).to(images)
        decoded = self.autoencoder.decode(posterior.mean + posterior.std * noise).sample
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        absolute, squared = F.l1_loss(decoded, images), F.mse_loss(decoded, images)
        self.log_dict({"l1": absolute, "mse": squared, "kl": kl}, prog_bar=True)
        return absolute + squared + self.kl_weight * kl

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self.make_optimizer(self.parameters())
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.make_schedule(optimizer), "interval": "step"},
        }


@torch.no_grad()
def encode_images(autoencoder: AutoencoderKL, images: torch.Tensor, batch_size: int = 128) -> torch.Tensor:
    """Posterior means (count, channels, height, width) of uint8 images (count, 3, height, width)."""
    chunks = [autoencoder.encode(chunk.float() / 127.5 - 1).latent_dist.mean for chunk in images.split(batch_size)]
    return torch.cat(chunks)


@torch.no_grad()
def normalize_latents(autoencoder: AutoencoderKL, latents: torch.Tensor) -> None:
    """Makes each latent channel zero mean and unit deviation over `latents`, by folding the affine map into the weights.

    The 1x1 convolutions on both sides of the latent space take it up, so that scaling_factor is 1 and every loader of
    diffusers decodes correctly without knowing of it.
    """
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    outward, inward = autoencoder.quant_conv, autoencoder.post_quant_conv
    channels = len(mean)
    outward.weight[:channels] /= std[:, None, None, None]
    outward.bias[:channels] = (outward.bias[:channels] - mean) / std
    outward.bias[channels:] -= 2 * std.log()
    inward.bias += (inward.weight[:, :, 0, 0] * mean).sum(1)
    inward.weight *= std[None, :, None, None]
    autoencoder.register_to_config(scaling_factor=1.0)


@torch.no_grad()
def peak_signal_to_noise(autoencoder: AutoencoderKL, images: torch.Tensor, batch_size: int = 64) -> float:
    """PSNR in dB of the reconstructions of uint8 images (count, 3, height, width), over all pixels at once."""
    squared = 0.0
    for chunk in images.split(batch_size):
        pixels = chunk.float() / 127.5 - 1
        decoded = autoencoder.decode(autoencoder.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
        squared += F.mse_loss(decoded, pixels, reduction="sum").item()
    return 10 * torch.log10(torch.tensor(4 * images.numel() / squared)).item()
