"""How diffusers' autoencoders of images are called, which differs by class: what each encodes, gives out and decodes."""

from typing import Any

import torch


def latent_channels(config: Any) -> int:
    """Channels of the latents of an autoencoder of this configuration."""
    return config.get("vq_embed_dim") or config.get("z_dim") or config.latent_channels


def image_channels(config: Any) -> int:
    """Channels of the images that an autoencoder of this configuration encodes; what it decodes to has as many."""
    return config.get("in_channels") or config.input_channels


def levels(config: Any) -> int:
    """How many sizes an image passes on its way to a latent, each half of the one before."""
    names = ("block_out_channels", "encoder_block_out_channels", "dim_mult")
    return len(next(config[name] for name in names if config.get(name)))


def pixels_per_latent(config: Any) -> int:
    """Rows, and columns, of an image for one of its latent."""
    return 2 ** (levels(config) - 1)


def of_video(autoencoder: Any) -> bool:
    """Whether it encodes frames, (batch, channels, frames, height, width): an image is one of them."""
    return "temperal_downsample" in autoencoder.config


def encode(autoencoder: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Latents (batch, channels, height, width), unscaled, of pixels (batch, channels, height, width) in [-1, 1].

    Posterior means of those that give a posterior; what is quantised afterwards of those that quantise.
    """
    video = of_video(autoencoder)
    output = autoencoder.encode(pixels[:, :, None] if video else pixels)
    if hasattr(output, "latent_dist"):
        found = output.latent_dist.mean
    else:
        found = output.latent if hasattr(output, "latent") else output.latents
    return found[:, :, 0] if video else found


def decode(autoencoder: Any, latents: torch.Tensor) -> torch.Tensor:
    """Pixels (batch, channels, height, width), in [-1, 1] but for what it overshoots, of unscaled latents."""
    if of_video(autoencoder):
        return autoencoder.decode(latents[:, :, None]).sample[:, :, 0]
    return autoencoder.decode(latents).sample
