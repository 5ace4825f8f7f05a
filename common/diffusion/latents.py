"""Between images and what an autoencoder encodes, and between that and the latents that a denoiser sees."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.diffusion.autoencoders import encode, image_channels, latent_channels, of_video
from common.diffusion.images import with_channels
from common.errors import InputError
from common.settings import is_finite_number

SMALLEST_SCALE = 1e-6  # beyond it latents leave the range of float32, or all are one


def pixels_for(autoencoder: Any, images: torch.Tensor) -> torch.Tensor:
    """What an autoencoder encodes of uint8 images (batch, 1 or 3, height, width): float in [-1, 1], in its own channels."""
    return with_channels(images, image_channels(autoencoder.config)).float() / 127.5 - 1


def scale_latents(autoencoder: Any, encoded: torch.Tensor) -> torch.Tensor:
    """(encoded - shift) * scaling_factor, or (encoded - mean) * scaling_factor / std, of (batch, channels, height, width).

    Shift, or mean and standard deviation of each channel, are those of the autoencoder's configuration: as diffusers'
    pipelines of Stable Diffusion XL and Qwen-Image (means) and 3 (shift) have it. An autoencoder of FLUX.2 holds them as
    the statistics of a batch norm, one for each place of a patch of 2 x 2.
    """
    shift, spread = affine(autoencoder, encoded)
    return (encoded - shift) * scaling_factor(autoencoder.config) / spread


def unscale_latents(autoencoder: Any, latents: torch.Tensor) -> torch.Tensor:
    """What the autoencoder decodes: scale_latents backwards."""
    shift, spread = affine(autoencoder, latents)
    return latents * spread / scaling_factor(autoencoder.config) + shift


def scaling_factor(config: Any) -> float:
    """1 where the class has none (Qwen-Image, FLUX.2)."""
    return config.get("scaling_factor", 1.0)


def affine(autoencoder: Any, like: torch.Tensor) -> tuple[torch.Tensor | float, torch.Tensor | float]:
    """Shift and spread: numbers, (1, channels, 1, 1), or of the size of `like`."""
    config = autoencoder.config
    if hasattr(autoencoder, "bn"):
        norm, (height, width) = autoencoder.bn, like.shape[2:]
        spread = (norm.running_var + config.batch_norm_eps).sqrt()
        return tuple(patches(each.to(like), height, width) for each in (norm.running_mean, spread))
    if config.get("latents_mean") is None:
        return config.get("shift_factor") or 0.0, 1.0
    return tuple(like.new_tensor(values).view(1, -1, 1, 1) for values in (config.latents_mean, config.latents_std))


def same_statistics(one: Any, other: Any) -> bool:
    """Whether two autoencoders of one class have the same statistics of latents, where they hold such (FLUX.2's)."""
    if not hasattr(one, "bn"):
        return True
    held = [(norm.bn.running_mean, norm.bn.running_var + norm.config.batch_norm_eps) for norm in (one, other)]
    return all(torch.allclose(mine, theirs, rtol=1e-3, atol=1e-4) for mine, theirs in zip(*held, strict=True))


def patches(values: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(1, channels, height, width) of values (4 * channels,) for the four places of each patch of 2 x 2."""
    return values.view(1, -1, 2, 2).repeat(1, 1, height // 2, width // 2)


def check_scaling(folder: Path, autoencoder: Any) -> None:
    """InputError for a scaling factor, shift, means or deviations by which no latents can be scaled."""
    config = autoencoder.config
    scale, shift = scaling_factor(config), config.get("shift_factor")
    if not is_finite_number(scale) or not SMALLEST_SCALE <= abs(scale) <= 1 / SMALLEST_SCALE:
        raise InputError(
            f"{folder} sets scaling_factor={scale}: a number from {SMALLEST_SCALE:g} to {1 / SMALLEST_SCALE:g} is needed."
        )
    if shift is not None and not is_finite_number(shift):
        raise InputError(f"{folder} sets shift_factor={shift}: a finite number is needed.")
    given = {name: config.get(name) for name in ("latents_mean", "latents_std")}
    if given["latents_mean"] is None and given["latents_std"] is None and not of_video(autoencoder):
        return
    channels = latent_channels(config)
    for name, values in given.items():
        if not isinstance(values, list | tuple) or len(values) != channels or not all(map(is_finite_number, values)):
            raise InputError(
                f"{folder} sets {name}={values}: {channels} finite numbers are needed, of both means and deviations."
            )
    if min(given["latents_std"]) <= 0:
        raise InputError(f"{folder} sets latents_std={given['latents_std']}: numbers above 0 are needed.")
    if shift is not None:
        raise InputError(f"{folder} sets both shift_factor={shift} and latents_mean: one of the two is honoured, not both.")


@torch.no_grad()
def encode_images(autoencoder: nn.Module, images: torch.Tensor, batch_size: int = 128) -> torch.Tensor:
    """Latents (count, channels, height, width) of uint8 images (count, 3, height, width): posterior means, or before
    quantisation."""
    chunks, device = [], next(autoencoder.parameters()).device
    for chunk in images.split(batch_size):
        chunks.append(encode(autoencoder, pixels_for(autoencoder, chunk.to(device))))
    return torch.cat(chunks)
