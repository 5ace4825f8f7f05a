"""How close images are to others: reconstructions to what was encoded, a student's samples to its teacher's."""

import torch
from torch import nn
from torch.nn import functional as F

from common.diffusion.autoencoders import decode
from common.diffusion.latents import encode_images, pixels_for


@torch.no_grad()
def peak_signal_to_noise(autoencoder: nn.Module, images: torch.Tensor, batch_size: int = 64) -> float:
    """PSNR in dB of the reconstructions of uint8 images (count, 3, height, width), over all pixels at once."""
    squared, count = 0.0, 0
    for chunk in images.split(batch_size):
        pixels = pixels_for(autoencoder, chunk)
        squared += F.mse_loss(reconstruct_images(autoencoder, chunk, batch_size), pixels, reduction="sum").item()
        count += pixels.numel()
    return 10 * torch.log10(torch.tensor(4 * count / squared)).item()


@torch.no_grad()
def reconstruct_images(autoencoder: nn.Module, images: torch.Tensor, batch_size: int = 64) -> torch.Tensor:
    """What is left in [-1, 1] of uint8 images (count, 3, height, width) after encoding and decoding."""
    chunks = images.split(batch_size)
    decoded = [decode(autoencoder, encode_images(autoencoder, chunk)).clamp(-1, 1).cpu() for chunk in chunks]
    return torch.cat(decoded)


def latent_mse(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of each pair in two equally shaped sets of latents, (count,)."""
    return (a.double() - b.double()).square().flatten(1).mean(1)


def structural_similarity(images_a: torch.Tensor, images_b: torch.Tensor) -> torch.Tensor:
    """SSIM (Wang et al. 2004), by torchmetrics, of pairs of uint8 images (count, 3, height, width), (count,); 1 if equal."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    pair = (images.float() for images in (images_a, images_b))
    return structural_similarity_index_measure(*pair, data_range=255.0, reduction="none")
