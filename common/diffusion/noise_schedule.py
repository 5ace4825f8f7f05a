"""The noise that a scheduler's configuration stands for, whichever class of scheduler reads it."""

from typing import Any

import torch

from common.errors import InputError, first_line

NOISE = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
    "prediction_type",
)


def same_noise(kind: Any, scheduler: Any, **settings: Any) -> Any:
    """A scheduler of the class `kind` with the noise of `scheduler`, and else with what both know and `settings`.

    diffusers' from_config takes the new class' default for each entry that a file has left to the old class' own; of the noise
    the two may differ (LCM's is the one of Stable Diffusion, DDPM's another), and then the new scheduler would sample or train
    on other noise than the denoiser knows.
    """
    known = dict(scheduler.config)
    known["_use_default_values"] = [name for name in known.get("_use_default_values", []) if name not in NOISE]
    return kind.from_config(known, **settings)


def noise_scheduler(scheduler: Any) -> Any:
    """The forward process of `scheduler`'s configuration: x_t = sqrt(alpha_bar) x + sqrt(1 - alpha_bar) noise, and velocity.

    Samplers scale noisy latents each in their own way (Euler's are not of unit variance); training never does.
    """
    from diffusers import DDPMScheduler

    return same_noise(DDPMScheduler, scheduler)


def check_noise(where: str, scheduler: Any) -> None:
    """InputError unless the share of the signal, alpha_bar, falls from at most 1 to at least 0 over the timesteps.

    where: what the scheduler was made of, for the error.
    """
    try:
        shares = noise_scheduler(scheduler).alphas_cumprod
    except (NotImplementedError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{where}: no noise can be made of its settings: {first_line(error)}") from error
    given = scheduler.config.get("trained_betas")
    if given is not None and len(given) != scheduler.config.num_train_timesteps:
        raise InputError(f"{where}: {len(given)} trained_betas for num_train_timesteps={scheduler.config.num_train_timesteps}.")
    fine = len(shares) > 0 and shares.isfinite().all() and shares[0] <= 1 and shares[-1] >= 0 and (shares.diff() <= 0).all()
    if not fine or torch.equal(shares, torch.ones_like(shares)):
        told = {name: scheduler.config.get(name) for name in NOISE[:4]}
        raise InputError(
            f"{where}: {', '.join(f'{name}={value}' for name, value in told.items())} make no schedule of noise; "
            "betas within 0 and 1 are needed."
        )


def learns_from_noise(scheduler: Any, takes_guidance: bool) -> bool:
    """Whether the loss is of noise on training data: False for a latent consistency model.

    takes_guidance: whether its denoiser is conditioned on a guidance scale, which tells as well.
    """
    return not takes_guidance and type(scheduler).__name__ != "LCMScheduler"


def check_learns_from_noise(scheduler: Any, takes_guidance: bool) -> None:
    """InputError for a model of whose loss neither training nor a criterion over training data knows (learns_from_noise)."""
    if not learns_from_noise(scheduler, takes_guidance):
        raise InputError(
            "The teacher is a latent consistency model, whose own loss this project does not have: it can be pruned by its "
            "samples or weights (method=ld_pruner, magnitude, random_layers) with distill=none; for training, or for criteria "
            "over training data, give the model it was distilled from."
        )
