"""The fixed conditions and noise on which scores are computed."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from common.denoisers.denoiser import Conditions
from common.diffusion.sampling import describe_scheduler, select_conditions
from common.errors import InputError
from common.runtime.seeding import mix_seed, seeded_normal

Data = Callable[[], tuple[torch.Tensor, Conditions]]


@dataclass(frozen=True)
class Calibration:
    """`samples` seeded noises for each condition, and how they are denoised.

    noise: (conditions, samples, channels, height, width); conditions: rows of keyword arguments, one row a condition,
    empty for unconditional models; null_condition: the row that guidance contrasts with.

    For criteria that look at training data: data() gives latents (rows, channels, height, width) of training images and
    their conditions; alignment(latents, chosen), of final latents (conditions, samples, ...) under the chosen conditions (a
    slice), how well they fit their captions.
    """

    noise: torch.Tensor
    conditions: Conditions
    null_condition: Conditions
    scheduler: Any
    steps: int
    guidance_scale: float
    data: Data | None = None
    alignment: Callable[[torch.Tensor, slice], float] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(conditions, samples)"""
        conditions, samples = self.noise.shape[:2]
        return conditions, samples

    def to(self, device: str | torch.device) -> "Calibration":
        """The same calibration with its tensors on `device`."""
        return replace(
            self,
            noise=self.noise.to(device),
            conditions={name: value.to(device) for name, value in self.conditions.items()},
            null_condition={name: value.to(device) for name, value in self.null_condition.items()},
        )

    def rows(self, chosen: slice, copies: int = 1) -> tuple[torch.Tensor, Conditions]:
        """Noise (copies * conditions * samples, ...) of the chosen conditions and the conditions row by row."""
        noise = self.noise[chosen].flatten(0, 1)
        conditions, samples = select_conditions(self.conditions, chosen), self.shape[1]

        def repeated(value: torch.Tensor) -> torch.Tensor:
            return value.repeat(copies, *[1] * (value.dim() - 1))

        return repeated(noise), {name: repeated(value.repeat_interleave(samples, 0)) for name, value in conditions.items()}

    def fingerprint(self) -> str:
        """Changes with anything that changes a score."""
        digest = hashlib.sha256(repr((self.steps, self.guidance_scale, describe_scheduler(self.scheduler))).encode())
        for tensor in (self.noise, *self.conditions.values(), *self.null_condition.values()):
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def alignment_fingerprint(self) -> str:
        """Changes with anything that changes the alignment of samples, what it looks at included (its `content`, if any)."""
        return f"{self.fingerprint()} {getattr(self.alignment, 'content', '')}"

    def data_fingerprint(self) -> str:
        """Changes with the training rows and the scheduler: what a criterion over training data depends on."""
        latents, conditions = training_rows(self.data)
        digest = hashlib.sha256(describe_scheduler(self.scheduler).encode())
        for tensor in (latents, *conditions.values(), *self.null_condition.values()):
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def training_rows(data: Data | None) -> tuple[torch.Tensor, Conditions]:
    """What a calibration's data() gives; InputError where there is no `data`, or none in it."""
    if data is None:
        raise InputError("This calibration has no training rows, and the error on data is asked for: give it `data`.")
    latents, conditions = data()
    if not len(latents):
        raise InputError("The calibration set is empty: calibration.data_rows must be at least 1.")
    return latents, conditions


def build_calibration(
    conditions: Conditions,
    null_condition: Conditions,
    latent_shape: tuple[int, int, int],
    scheduler: Any,
    *,
    num_conditions: int,
    samples: int,
    steps: int,
    guidance_scale: float,
    seed: int,
    data: Data | None = None,
    alignment: Callable[[torch.Tensor, slice], float] | None = None,
) -> Calibration:
    """Noise seeded by (seed, condition, sample). InputError when the conditions' rows differ."""
    for name, rows in conditions.items():
        if len(rows) != num_conditions:
            raise InputError(f"calibration: {len(rows)} rows of {name} for num_conditions={num_conditions}.")
    seeds = [mix_seed(seed, c, s) for c in range(num_conditions) for s in range(samples)]
    noise = seeded_normal(seeds, latent_shape).unflatten(0, (num_conditions, samples))
    return Calibration(noise, conditions, null_condition, scheduler, steps, guidance_scale, data, alignment)
