"""Trains an autoencoder: pixels to latents and back."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from common.diffusion.latents import pixels_for
from common.runtime.collectives import mean_over_processes
from common.training.nan_guard import GuardedTraining, check_loss


class AutoencoderTraining(GuardedTraining):
    """L1 and squared error in pixels, and what the kind of autoencoder adds for its latents.

    Batches are dictionaries with `images`, uint8 (batch, 3, height, width), and `position` (common.training.batches).
    """

    autoencoder: Any  # of diffusers' class that the kind of training is for

    def __init__(
        self,
        autoencoder: nn.Module,
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Callable[[torch.optim.Optimizer], Any],
        seed: int,
    ):
        super().__init__(optimizer, schedule, seed)
        self.autoencoder = autoencoder

    def reconstruct(self, images: torch.Tensor, positions: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Decoded images like `images`, and the weighted loss of the latents."""
        raise NotImplementedError

    def normalize_latents(self, latents: torch.Tensor) -> None:
        """Folds an affine map into the trained weights, so that latents are of zero mean and unit deviation over `latents`.

        The 1x1 convolutions on both sides of the latent space take it up: scaling_factor is 1, and every loader of
        diffusers decodes correctly without knowing of it.
        """
        raise NotImplementedError

    def training_step(self, batch: dict[str, torch.Tensor], batch_index: int) -> torch.Tensor:
        images = pixels_for(self.autoencoder, batch["images"])
        decoded, penalty = self.reconstruct(images, batch["position"].tolist())
        terms = {"l1": F.l1_loss(decoded, images), "mse": F.mse_loss(decoded, images), "latents": penalty}
        loss = terms["l1"] + terms["mse"] + terms["latents"]
        values = mean_over_processes(torch.stack([loss, *terms.values()]).detach())
        terms = dict(zip(terms, values[1:], strict=True))
        check_loss(values[0], terms, self.global_step)
        self.log("loss", values[0], prog_bar=True)
        self.log_dict(terms)
        return loss
