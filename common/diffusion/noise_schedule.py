"""The noise that a scheduler's configuration stands for, whichever class of scheduler reads it: of diffusion, or of a flow."""

import inspect
from typing import Any, Protocol

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
    known = {"_class_name": type(scheduler).__name__, **scheduler.config}  # by which diffusers drops what only that class knows
    known["_use_default_values"] = [name for name in known.get("_use_default_values", []) if name not in NOISE]
    return kind.from_config(known, **settings)


class NoiseProcess(Protocol):
    """How latents become noise, and what a denoiser learns of that.

    steps: how many timesteps there are, by number from 0. prediction_type: what is predicted.
    """

    steps: int
    prediction_type: str

    def timesteps(self, numbers: torch.Tensor) -> torch.Tensor:
        """What the denoiser is told for the timesteps of these numbers (rows,), of which the last has most noise."""

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Noisy latents (rows, channels, height, width)."""

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """What the denoiser should predict."""


class Diffusion:
    """x_t = sqrt(alpha_bar) x + sqrt(1 - alpha_bar) noise; noise, velocity or the sample is predicted.

    Samplers scale noisy latents each in their own way (Euler's are not of unit variance); training never does.
    """

    def __init__(self, scheduler: Any):
        from diffusers import DDPMScheduler

        self.scheduler = same_noise(DDPMScheduler, scheduler)
        self.steps, self.prediction_type = self.scheduler.config.num_train_timesteps, self.scheduler.config.prediction_type

    @property
    def signal(self) -> torch.Tensor:
        """alpha_bar, the share of the signal's power (steps,)."""
        return self.scheduler.alphas_cumprod

    def timesteps(self, numbers: torch.Tensor) -> torch.Tensor:
        return numbers

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return self.scheduler.add_noise(latents, noise, timesteps)

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "v_prediction":
            return self.scheduler.get_velocity(latents, noise, timesteps)
        if self.prediction_type == "sample":
            return latents
        known = "epsilon, v_prediction, sample"
        raise InputError(f"prediction_type={self.prediction_type!r} of the scheduler is none of {known}.")


class Flow:
    """x_t = (1 - sigma) x + sigma noise, whose velocity noise - x is predicted (flow matching, arXiv 2209.03003, 2403.03206).

    sigma of the numbers 0 to steps - 1 is shift * s / (1 + (shift - 1) * s) with s = (number + 1) / steps; the denoiser is told
    steps * sigma. The shift is that of the scheduler's configuration, 1 where it depends on the size of the image.
    """

    prediction_type = "flow_prediction"

    def __init__(self, scheduler: Any):
        config = scheduler.config
        self.steps = config.num_train_timesteps
        fixed = 1.0 if config.get("use_dynamic_shifting") else config.get("shift", config.get("flow_shift", 1.0))
        self.shift = float(fixed or 1.0)

    def timesteps(self, numbers: torch.Tensor) -> torch.Tensor:
        even = (numbers.float() + 1) / self.steps
        return self.steps * self.shift * even / (1 + (self.shift - 1) * even)

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        sigma = (timesteps.to(latents) / self.steps).view(-1, *[1] * (latents.dim() - 1))
        return (1 - sigma) * latents + sigma * noise

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        return noise - latents


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler samples a flow: one of diffusers' FlowMatch classes, or another of its classes that is set to."""
    named = scheduler.config.get("prediction_type") == "flow_prediction" or flow_sigmas(scheduler)
    return bool(named) or type(scheduler).__name__.startswith("FlowMatch")


def knows_flows(scheduler: Any) -> bool:
    """Whether a scheduler's class can sample a flow: whatever prediction_type another class has left in its configuration."""
    return flow_sigmas(scheduler) is not None or type(scheduler).__name__.startswith("FlowMatch")


def flow_sigmas(scheduler: Any) -> bool | None:
    """use_flow_sigmas; None of a class that does not read it, whatever a configuration of another class has left there."""
    known = inspect.signature(type(scheduler).__init__).parameters
    return scheduler.config.get("use_flow_sigmas") if "use_flow_sigmas" in known else None


def noise_process(scheduler: Any) -> NoiseProcess:
    """The forward process of `scheduler`'s configuration."""
    return Flow(scheduler) if is_flow(scheduler) else Diffusion(scheduler)


def check_noise(where: str, scheduler: Any) -> None:
    """InputError unless the share of the signal, alpha_bar, falls from at most 1 to at least 0 over the timesteps.

    where: what the scheduler was made of, for the error.
    """
    if is_flow(scheduler):
        told = {"prediction_type": scheduler.config.get("prediction_type"), "use_flow_sigmas": flow_sigmas(scheduler)}
        matched = type(scheduler).__name__.startswith("FlowMatch")
        if not matched and (told["prediction_type"] == "flow_prediction") != bool(told["use_flow_sigmas"]):
            raise InputError(f"{where}: {', '.join(f'{name}={value}' for name, value in told.items())} contradict each other.")
        shift = Flow(scheduler).shift
        if not 0 < shift < float("inf"):
            raise InputError(f"{where}: a shift of {shift} makes no schedule of noise; a number above 0 is needed.")
        return
    try:
        shares = Diffusion(scheduler).signal
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
