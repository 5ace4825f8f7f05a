"""Trains a pruned autoencoder on: reconstruction, and what its kind adds for its latents."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
import torch
from torch import nn

from common.errors import InputError
from common.training.batches import TensorRows
from common.training.fit import fit
from common.training.kl_autoencoder import KLTraining
from common.training.schedules import scheduler
from common.training.vq_autoencoder import VQTraining
from experiments.shared.settings import Settings
from experiments.training.distill_student import trainer_settings

TRAINED = ("VQModel", "AutoencoderKL", "AutoencoderKLFlux2")


def check_is_trained(settings: Settings, method: Any, autoencoder: nn.Module) -> None:
    """InputError where an autoencoder that the method prunes would be trained, and is of a class that is not."""
    trained = settings.distill.autoencoder.steps and "autoencoder" in method.pruned_parts
    if trained and type(autoencoder).__name__ not in TRAINED:
        raise InputError(
            f"distill.autoencoder.steps={settings.distill.autoencoder.steps}: autoencoders of the classes {', '.join(TRAINED)} "
            f"are trained, and this is a {type(autoencoder).__name__}: distill.autoencoder.steps=0 prunes it alone."
        )


def finetune_autoencoder(
    given: Settings, autoencoder: nn.Module, images: torch.Tensor, folder: Path, callbacks: Sequence[Any]
) -> nn.Module:
    """`autoencoder` (of a class in TRAINED) after distill.autoencoder.steps optimiser steps on uint8 images.

    Encoder, decoder and codebook are trained. No entry of the codebook is moved for being unused, and the latents are not
    normalised anew: they stay where the denoiser knows them. Goes on from the last checkpoint in `folder`.
    callbacks: the method's own (Lightning), as in distill_student.distill.
    """
    settings = given.distill.autoencoder
    autoencoder.train().requires_grad_(True)
    common = (
        autoencoder,
        hydra.utils.instantiate(settings.optimizer),
        scheduler(**asdict(given.distill.schedule), steps=settings.steps),
    )
    if hasattr(autoencoder, "quantize"):
        weights = {"codebook_weight": settings.codebook_weight, "spread_weight": settings.spread_weight}
        module = VQTraining(*common, seed=given.seed, **weights, revive_every=None)
    else:
        module = KLTraining(*common, seed=given.seed, kl_weight=settings.kl_weight)
    fit(
        module,
        TensorRows(images=images),
        steps=settings.steps,
        batch_size=settings.batch_size,
        seed=given.seed,
        folder=folder,
        description="training autoencoder",
        checkpoint_every=given.distill.checkpoint_every,
        trainer=trainer_settings(given.distill, autoencoder.device, whole=True),
        callbacks=callbacks,
    )
    for callback in callbacks:
        callback.finish(autoencoder)
    return autoencoder.eval().requires_grad_(False)
