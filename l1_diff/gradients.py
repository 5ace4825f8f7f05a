"""The gradients dL/dw that L1-Diff's importance takes (l1_diff.algorithm).

L is the denoiser's training loss over the calibration's rows, or an autoencoder's reconstruction error. The README gives
neither alpha nor beta, and magnitudes and gradients have different scales: `importances` makes them comparable.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from common.diffusion.autoencoders import decode, encode
from common.diffusion.latents import pixels_for
from common.diffusion.sampling import predict
from common.errors import InputError
from common.scoring.calibration import Calibration
from common.scoring.noisy_batches import noisy_batches

GradientAverage = Literal["mean", "mean_absolute"]
AVERAGES = get_args(GradientAverage)
Loss = tuple[float, Callable[[], torch.Tensor]]


@contextmanager
def differentiable(weights: Iterable[torch.Tensor]) -> Iterator[None]:
    """The weights require gradients inside the context, and are as before afterwards."""
    before = [(weight, weight.requires_grad) for weight in weights]
    try:
        for weight, _ in before:
            weight.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for weight, required in before:
            weight.requires_grad_(required)


def average_gradients(
    weights: Mapping[str, torch.Tensor], losses: Iterable[Loss], average: str = "mean"
) -> dict[str, torch.Tensor]:
    """dL/dw by site in float32, with L the sum of share * loss() over `losses`; the shares sum to 1.

    average: "mean" is the gradient of L, the formula read literally; "mean_absolute" averages |gradient| over the batches, so
    that opposite gradients do not cancel. InputError for an unknown average and for gradients that are not finite.
    """
    if average not in AVERAGES:
        raise InputError(f"method.gradient_average={average!r} is none of {', '.join(AVERAGES)}.")
    totals = {site: torch.zeros_like(weight, dtype=torch.float32) for site, weight in weights.items()}
    with differentiable(weights.values()):
        for share, loss in losses:
            found = torch.autograd.grad(loss(), list(weights.values()), allow_unused=True, materialize_grads=True)
            for total, gradient in zip(totals.values(), found, strict=True):
                total.add_(gradient.float().abs() if average == "mean_absolute" else gradient.float(), alpha=share)
    for site, total in totals.items():
        if not torch.isfinite(total).all():
            raise InputError(f"l1_diff: the gradient at {site} is not finite; are the teacher's weights and data finite?")
    return totals


def denoising_losses(unet: nn.Module, calibration: Calibration, timesteps: str, batch_size: int, seed: int) -> Iterator[Loss]:
    """The task loss E || target - eps(x_t, t, c) ||^2 over the calibration's training rows, a batch at a time.

    Each row has one timestep (common.scoring.noisy_batches; InputError as there).
    """
    for batch in noisy_batches(calibration, timesteps, batch_size, False, seed):

        def loss(batch=batch) -> torch.Tensor:
            prediction = predict(unet, batch.latents, batch.timesteps, batch.conditions)
            return F.mse_loss(prediction.float(), batch.target.float())

        yield batch.share, loss


def reconstruction_losses(autoencoder: Any, images: torch.Tensor, batch_size: int) -> Iterator[Loss]:
    """The squared error of decoded against given pixels in [-1, 1], a batch at a time.

    images: uint8 (count, 3, height, width). An AutoencoderKL decodes the posterior's mean; a VQModel quantises, and gradients
    pass the quantiser straight through. InputError for anything else, or for no images.
    """
    if images.dtype != torch.uint8 or images.dim() != 4 or not len(images):
        raise InputError(f"images are {images.dtype} {tuple(images.shape)}; uint8 (count, 3, height, width) is needed.")
    weight = next(autoencoder.parameters())
    for chunk in images.split(batch_size):

        def loss(chunk=chunk) -> torch.Tensor:
            pixels = pixels_for(autoencoder, chunk.to(weight.device)).to(weight.dtype)
            return F.mse_loss(decode(autoencoder, encode(autoencoder, pixels)).float(), pixels.float())

        yield len(chunk) / len(images), loss
