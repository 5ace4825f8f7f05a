"""L1-Diff's importance of a single weight: I = alpha |w| + beta |dL/dw| (README of "Towards Tiny Diffusion").

L is the denoiser's training loss over the calibration's rows, or an autoencoder's reconstruction error. The README gives
neither alpha nor beta, and magnitudes and gradients have different scales: `importances` makes them comparable.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from common.diffusion.latents import pixels_for
from common.diffusion.sampling import predict
from common.errors import InputError
from common.scoring.calibration import Calibration
from common.scoring.noisy_batches import noisy_batches

GradientAverage = Literal["mean", "mean_absolute"]
AVERAGES = get_args(GradientAverage)
Loss = tuple[float, Callable[[], torch.Tensor]]


def check_weights(alpha: float, beta: float) -> None:
    """InputError when alpha or beta is negative, or both are 0."""
    if alpha < 0 or beta < 0 or alpha == beta == 0:
        raise InputError(f"method.alpha={alpha}, method.beta={beta}: both must be at least 0, and one of them above.")


def importance(weight: torch.Tensor, gradient: torch.Tensor | None, alpha: float, beta: float) -> torch.Tensor:
    """alpha |w| + beta |dL/dw|, elementwise, float32 like `weight`; `gradient` may be None when beta is 0.

    InputError when alpha or beta is negative, when both are 0, and for a gradient that is missing or of another shape.
    """
    check_weights(alpha, beta)
    total = alpha * weight.detach().float().abs()
    if beta:
        if gradient is None or gradient.shape != weight.shape:
            given = None if gradient is None else tuple(gradient.shape)
            raise InputError(f"importance: the gradient's shape is {given}, the weight's {tuple(weight.shape)}.")
        total += beta * gradient.detach().float().abs()
    return total


def importances(
    weights: Mapping[str, torch.Tensor], gradients: Mapping[str, torch.Tensor], alpha: float, beta: float, balance: bool
) -> dict[str, torch.Tensor]:
    """The importance of every weight by site; `gradients` are read when beta is above 0.

    balance: alpha and beta are given in units of the network, alpha / mean |w| and beta / mean |dL/dw| over all of `weights`:
    still two constants of the formula, of which the README gives none, and so without a change of the ranking over layers.
    """
    check_weights(alpha, beta)
    if balance:
        alpha, beta = alpha / mean_size(weights.values()), beta and beta / mean_size(gradients[site] for site in weights)
    return {site: importance(weight, gradients.get(site), alpha, beta) for site, weight in weights.items()}


def mean_size(tensors: Iterable[torch.Tensor]) -> float:
    """The mean absolute value over all elements; a tiny number where all are zero."""
    total, count = 0.0, 0
    for tensor in tensors:
        total, count = total + tensor.detach().float().abs().sum().item(), count + tensor.numel()
    return max(total / max(1, count), torch.finfo(torch.float32).tiny)


@contextmanager
def differentiable(weights: Iterable[nn.Parameter]) -> Iterator[None]:
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
    weights: Mapping[str, nn.Parameter], losses: Iterable[Loss], average: str = "mean"
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


def reconstruction_losses(autoencoder: nn.Module, images: torch.Tensor, batch_size: int) -> Iterator[Loss]:
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
            encoded = autoencoder.encode(pixels)
            latents = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents
            return F.mse_loss(autoencoder.decode(latents).sample.float(), pixels.float())

        yield len(chunk) / len(images), loss
