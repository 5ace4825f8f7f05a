"""L1-Diff ("Towards Tiny Diffusion"): masks by importance, then training under an L1 penalty with regrowth."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from annotated_types import Gt, Le, MinLen
from torch import nn

from common.errors import InputError
from common.pruning.forecast import CalibrationSize, Forecast
from common.pruning.masks import MASK, plan_masks
from common.pruning.method import Method
from common.pruning.plan import Edit, Plan
from common.scoring.calibration import Calibration
from common.scoring.noisy_batches import Timesteps
from common.settings import AtLeastOne, Decay, NonNegative, Probability, Seed, check_fields
from l1_diff.algorithm import check_coefficients, importances
from l1_diff.gradients import GradientAverage, Loss, average_gradients, denoising_losses, reconstruction_losses
from l1_diff.masks import (
    Masks,
    ModuleKind,
    Scope,
    check_groups,
    parse_pattern,
    pattern_masks,
    prunable_weights,
    reference_masks,
    sparsity_masks,
    threshold_masks,
)
from l1_diff.regrowth import RegrowBy, Regrowth
from l1_diff.schedule import Ramp

if TYPE_CHECKING:
    from common.pruning.pruning_callback import PruningCallback

Losses = Callable[[], Iterable[Loss]]
Part = Literal["denoiser", "autoencoder"]
REFERENCE = {
    "threshold": None,
    "scope": "layer",
    "pattern": None,
    "modules": ("conv",),
    "exclude": (),
    "autoencoder_exclude": (),
    "alpha": 1.0,
    "beta": 0.0,
    "balance": False,
    "penalty": 0.0,
    "schedule": "oneshot",
    "regrowth": 0.0,
}


def with_settings(method: "L1Diff", settings: Mapping[str, Any]) -> "L1Diff":
    """A copy of the method with other settings."""
    changed = copy.copy(method)
    vars(changed).update(settings)
    return changed


@dataclass
class L1Diff(Method):
    """Removes single weights: a plan of masks, which act during training.

    The settings are explained in conf/method/l1_diff.yaml. variant "published" follows the authors' README, with its open
    points as settings; "reference" does what their code does, and takes `parts` and `sparsity` alone from the settings.
    """

    variant: Literal["published", "reference"]
    parts: Annotated[tuple[Part, ...], MinLen(1)]
    sparsity: Decay | None
    threshold: NonNegative | None
    scope: Scope
    pattern: str | None
    modules: Annotated[tuple[ModuleKind, ...], MinLen(1)]
    exclude: tuple[str, ...]
    autoencoder_exclude: tuple[str, ...]
    alpha: NonNegative
    beta: NonNegative
    balance: bool
    gradient_average: GradientAverage
    penalty: NonNegative
    penalty_step: Literal["proximal", "subgradient"]
    schedule: Literal["oneshot", "gradual"]
    initial_sparsity: Decay
    ramp: Annotated[float, Gt(0), Le(1)]
    remask_every: AtLeastOne
    gradient_decay: Decay
    regrowth: Probability
    regrow_by: RegrowBy
    regrow_every: AtLeastOne
    reprune: bool
    batch_size: AtLeastOne
    timesteps: Timesteps
    seed: Seed

    def __post_init__(self) -> None:
        check_fields(self, "method")
        self.checked()
        self.pruned_parts = self.parts
        self.prunes_in_training = self.schedule == "gradual" and self.variant != "reference"

    def checked(self) -> "L1Diff":
        """These settings as they take effect (variant "reference" fixes most); InputError for those that do not go together."""
        settings = with_settings(self, REFERENCE) if self.variant == "reference" else self
        settings._check_amount()
        check_coefficients(settings.alpha, settings.beta)
        if settings.regrowth and settings.pattern is not None:
            raise InputError(f"method.regrowth={settings.regrowth} would break method.pattern; set method.regrowth=0.")
        gradual = settings.schedule == "gradual"
        if gradual and (settings.sparsity is None or settings.initial_sparsity > settings.sparsity):
            raise InputError("method.schedule=gradual needs method.sparsity, and initial_sparsity not above it.")
        return settings

    def _check_amount(self) -> None:
        given = [name for name in ("sparsity", "threshold", "pattern") if getattr(self, name) is not None]
        if len(given) != 1:
            named = " and ".join(f"method.{name}={getattr(self, name)}" for name in given) or "nothing"
            raise InputError(f"How much to prune is said by {named}; give one of sparsity, threshold, pattern, others null.")
        if self.pattern is not None:
            parse_pattern(self.pattern)

    def plan(self, unet: nn.Module, calibration: Calibration, teacher: str, scores: Path | None) -> Plan:
        """Masks for `unet`, none where `parts` leaves it out; a site's score in the plan is the share of its weights that stay.

        Scoring is one pass back and forth over the calibration's rows: nothing is kept in the folder `scores`. With
        schedule=gradual the masks are those of initial_sparsity; training goes on from there.
        """
        settings = self.checked()
        if "denoiser" not in settings.parts:
            return Plan(method="l1_diff", edits=(), teacher=teacher, settings=asdict(settings))
        losses = partial(denoising_losses, unet, calibration, settings.timesteps, settings.batch_size, settings.seed)
        return settings._plan(unet, "exclude", losses, teacher)

    def autoencoder_plan(self, autoencoder: nn.Module, images: torch.Tensor, teacher: str) -> Plan:
        """Masks for a VQModel or AutoencoderKL, importance by its reconstruction error on `images` (uint8).

        InputError where a pattern of `autoencoder_exclude` matches none of its paths.
        """
        settings = self.checked()
        losses = partial(reconstruction_losses, autoencoder, images, settings.batch_size)
        return settings._plan(autoencoder, "autoencoder_exclude", losses, teacher)

    def forecast(self, unet: nn.Module, size: CalibrationSize) -> Forecast:
        """One pass back and forth over the rows where gradients count; a student of the teacher's shape, with zeros in it."""
        settings = self.checked()
        if "denoiser" in settings.parts:
            weights = prunable_weights(unet, settings.modules, settings.exclude)
            if settings.pattern is not None:
                check_groups(weights, settings.pattern)
        rows = size.rows if settings.beta and "denoiser" in settings.parts else 0
        scores_again = settings.schedule == "gradual" or (settings.regrowth > 0 and settings.reprune)
        running = (settings.beta > 0 and scores_again) or (settings.regrowth > 0 and settings.regrow_by == "gradient")
        return Forecast(
            forward=rows,
            backward=rows,
            batch=min(settings.batch_size, rows),
            plan=Plan(method="l1_diff", edits=()),
            exact=True,
            per_parameter=torch.bool.itemsize + (torch.float32.itemsize if running else 0),
            note="single weights become zero, which dense kernels neither skip nor save",
        )

    def _plan(self, network: nn.Module, exclude: str, losses: Losses, teacher: str) -> Plan:
        """exclude: the name of the setting with the network's patterns."""
        masks = self._masks(network, self._scores(network, exclude, losses), exclude)
        pruned = {site: mask.numel() - int(mask.sum()) for site, mask in masks.items()}
        stays = {site: 1 - pruned[site] / mask.numel() for site, mask in masks.items()}
        total = sum(mask.numel() for mask in masks.values())
        return Plan(
            method="l1_diff",
            edits=tuple(Edit(site, MASK, {"pruned": pruned[site]}, stays[site]) for site in masks),
            teacher=teacher,
            scores=stays,
            settings=asdict(self) | {"sparsity_reached": sum(pruned.values()) / total},
            tensors={f"{site}.{MASK}": mask.cpu() for site, mask in masks.items()},
        )

    def _scores(self, network: nn.Module, exclude: str, losses: Losses) -> dict[str, torch.Tensor]:
        weights = prunable_weights(network, self.modules, getattr(self, exclude), exclude)
        gradients: Mapping[str, torch.Tensor] = {}
        if self.beta:
            gradients = average_gradients(weights, losses(), self.gradient_average)
        return self._importances(weights, gradients)

    def _importances(
        self, weights: Mapping[str, torch.Tensor], gradients: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        return importances(weights, gradients, self.alpha, self.beta, self.balance)

    def _masks(self, network: nn.Module, scores: dict[str, torch.Tensor], exclude: str) -> Masks:
        if self.threshold is not None:
            return threshold_masks(scores, self.threshold)
        if self.pattern is not None:
            return pattern_masks(scores, self.pattern, exclude)
        sparsity = self.sparsity or 0.0
        if self.variant == "reference":
            return reference_masks(network, sparsity)
        return sparsity_masks(scores, self.initial_sparsity if self.schedule == "gradual" else sparsity, self.scope)

    def training_callbacks(self, network: nn.Module, plan: Plan) -> "list[PruningCallback]":
        """The Lightning callback that keeps the masks of `plan` on `network`, with penalty, gradual pruning and regrowth.

        Nothing for a plan without masks.
        """
        if not plan.edits:
            return []
        from l1_diff.sparse_training import SparseTraining

        settings = self.checked()
        ramp = Ramp(settings.initial_sparsity, settings.sparsity or 0.0, settings.ramp, settings.remask_every)
        return [
            SparseTraining(
                network,
                plan_masks(plan.edits, plan.tensors),
                score=settings._importances,
                uses_gradient=settings.beta > 0,
                gradient_decay=settings.gradient_decay,
                scope=settings.scope,
                penalty=settings.penalty,
                penalty_step=settings.penalty_step,
                ramp=ramp if settings.schedule == "gradual" else None,
                regrowth=Regrowth(
                    probability=settings.regrowth,
                    by=settings.regrow_by,
                    every=settings.regrow_every,
                    reprune=settings.reprune,
                    seed=settings.seed,
                ),
            )
        ]
