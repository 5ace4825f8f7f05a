"""Denoising from seeded noise with any diffusers scheduler, with or without classifier-free guidance."""

import hashlib
import inspect
import json
from collections.abc import Callable
from typing import Any

import numpy
import torch

from common.denoisers.denoiser import GUIDANCE, Conditions, Denoiser, architecture_of
from common.runtime.seeding import seeded_normal


def predict(
    denoiser: Callable[..., Any], latents: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions
) -> torch.Tensor:
    """The denoiser's output (batch, channels, height, width): what every call of a denoiser in the project goes through."""
    return architecture_of(denoiser).predict(denoiser, latents, timesteps, conditions)


def with_guidance(denoiser: Any, conditions: Conditions, guidance_scale: float) -> Conditions:
    """The conditions, with the guidance scale as one of them (GUIDANCE) where the denoiser is told it: of all rows the same."""
    told = architecture_of(denoiser).guidance(denoiser, guidance_scale) if conditions else {}
    first = next(iter(conditions.values()), None)
    return conditions | {name: value.to(first.device).expand(len(first), *value.shape[1:]) for name, value in told.items()}


def is_guided(conditions: Conditions, guidance_scale: float) -> bool:
    """Whether each sample takes two passes, with its condition and without (Ho and Salimans 2022)."""
    return guidance_scale > 1 and bool(conditions) and not any(name in conditions for name in GUIDANCE)


def select_conditions(conditions: Conditions, rows: slice | torch.Tensor) -> Conditions:
    """The same rows of every condition tensor."""
    return {name: value[rows] for name, value in conditions.items()}


def describe_scheduler(scheduler: Any) -> str:
    """Class and configuration of a scheduler as text, the same in every process."""
    settings = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    return json.dumps([type(scheduler).__name__, settings], sort_keys=True, default=str)


def row_generators(noise: torch.Tensor) -> list[torch.Generator]:
    """A generator for each row, seeded by the row's own noise: what a stochastic scheduler draws depends on the row alone."""
    digests = [hashlib.sha256(row.numpy().tobytes()).digest() for row in noise.detach().cpu().contiguous()]
    return [torch.Generator().manual_seed(int.from_bytes(digest[:7], "little")) for digest in digests]


def set_timesteps(scheduler: Any, steps: int, latents: torch.Tensor, architecture: Denoiser) -> None:
    """Spreads the steps over the schedule, of a flow whose shift depends on the size of the image by the size of the latents.

    As the pipelines of that architecture do (Denoiser.asks_for_sigmas, Denoiser.time_shift).
    """
    config = scheduler.config
    options: dict[str, Any] = {}
    if architecture.asks_for_sigmas(config) and "sigmas" in inspect.signature(scheduler.set_timesteps).parameters:
        options["sigmas"] = numpy.linspace(1.0, 1 / steps, steps)
    if config.get("use_dynamic_shifting"):
        options["mu"] = architecture.time_shift(config, latents.shape[-2] * latents.shape[-1] // 4, steps)
    scheduler.set_timesteps(steps, device=latents.device, **options)


@torch.no_grad()
def denoise(
    denoiser: Callable[..., Any],
    scheduler: Any,
    noise: torch.Tensor,
    conditions: Conditions,
    null_condition: Conditions,
    steps: int,
    guidance_scale: float,
) -> torch.Tensor:
    """From unit noise (batch, channels, height, width) to final latents of the same shape.

    `null_condition` holds the condition without a caption, one row; it is used where guidance_scale > 1
    (Denoiser.guided), but not of a denoiser that is told its scale (with_guidance).
    `scheduler` is copied, so that its state is not shared; one that draws noise of its own draws it row by row.
    """
    scheduler = type(scheduler).from_config(scheduler.config)
    architecture: Any = architecture_of(denoiser)
    set_timesteps(scheduler, steps, noise, architecture)
    conditions = with_guidance(denoiser, conditions, guidance_scale)
    guided = is_guided(conditions, guidance_scale)
    if guided:
        conditions = {name: torch.cat([null_condition[name].expand_as(value), value]) for name, value in conditions.items()}
    stochastic = "generator" in inspect.signature(scheduler.step).parameters
    options = {"generator": row_generators(noise)} if stochastic else {}
    latents = noise * getattr(scheduler, "init_noise_sigma", 1.0)  # of flows 1
    scaled = getattr(scheduler, "scale_model_input", lambda inputs, timestep: inputs)
    for timestep in scheduler.timesteps:
        inputs = scaled(torch.cat([latents] * 2) if guided else latents, timestep)
        output = predict(denoiser, inputs, timestep, conditions).to(latents.dtype)  # from autocast's, for the scheduler
        if guided:
            without, conditioned = output.chunk(2)
            output = architecture.guided(without, conditioned, guidance_scale)
        latents = scheduler.step(output, timestep, latents, **options).prev_sample
    return latents


def sample_latents(
    denoiser: Callable[..., Any],
    scheduler: Any,
    latent_shape: tuple[int, int, int],
    seeds: list[int],
    conditions: Conditions,
    null_condition: Conditions,
    steps: int,
    guidance_scale: float,
    batch_size: int,
    draw: Callable[[list[int], tuple[int, ...]], torch.Tensor] = seeded_normal,
) -> torch.Tensor:
    """Final latents (len(seeds), *latent_shape) on the CPU; sample i depends on seeds[i] and its condition alone.

    draw: what makes noise of seeds and a latent's shape.
    """
    device = next(denoiser.parameters()).device
    finished = []
    for start in range(0, len(seeds), batch_size):
        rows = slice(start, start + batch_size)
        noise = draw(seeds[rows], latent_shape).to(device)
        chosen = {name: value.to(device) for name, value in select_conditions(conditions, rows).items()}
        bare = {name: value.to(device) for name, value in null_condition.items()}
        finished.append(denoise(denoiser, scheduler, noise, chosen, bare, steps, guidance_scale).cpu())
    return torch.cat(finished)
