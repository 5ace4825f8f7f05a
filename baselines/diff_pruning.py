"""Diff-Pruning (Fang, Ma, Wang, NeurIPS 2023, arXiv 2305.10924): channels by a Taylor expansion over pruned timesteps.

    L_t = E || target - student(x_t, t, c) ||^2            at every timestep t, on one batch and one noise
    importance of a channel = sum_k | w_k dL/dw_k |        over its weights w_k, with L = L_0 + L_1 + ... + L_T'

Timesteps are visited from 0, the least noisy one, on. The loop stops at the first t with L_t < threshold * max_{s<=t} L_s:
what is nearly solved there, noise in noise, tells little about the weights. As in the authors' code for latent diffusion,
the step that stops the loop does not count (their code for pixels counts it). The paper's thresholds are for networks that
predict the noise; where velocity is predicted, L_t has a floor (0.21 of the largest on the shipped teacher) and the loop
runs to the end unless the threshold is above it.

How many channels go in groups of norms and heads is a matter of rounding (common.pruning.channels.prune_channels). With "down"
a ratio of 0.3 gives the paper's own sizes: 35.7M and 6.1G MACs of the U-Net for CIFAR-10 become 19.8M and 3.4G.

The importance of a channel is the mean over the layers that it ties together (torch-pruning's group importances). The
variants are the paper's comparisons:

    diff_pruning  sum_k | w_k g_k |, timesteps until the threshold
    taylor        | sum_k w_k g_k |, all timesteps
    magnitude     sum_k w_k^2, no data
    random        a seeded uniform number per channel, no data
"""

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal
from zlib import crc32

import torch
from torch import nn
from torch.nn import functional as F

from common.cost.macs import count_parameters
from common.denoisers.denoiser import architecture_of
from common.diffusion.noise_schedule import check_learns_from_noise, noise_process
from common.diffusion.sampling import predict
from common.errors import InputError, check_one_given
from common.pruning.budget import Budget, bounds_of
from common.pruning.channels import ChannelPruning, Importance, Rounding, prune_channels
from common.pruning.forecast import CalibrationSize, Forecast
from common.pruning.method import Method
from common.pruning.plan import Plan
from common.runtime.content import content_name
from common.runtime.files import write_atomically
from common.runtime.processes import is_first
from common.runtime.progress import progress_bar
from common.runtime.seeding import generator_for, mix_seed, seeded_normal
from common.scoring.calibration import Calibration, training_rows
from common.settings import AtLeastOne, Probability, Seed, Share, check_fields

Variant = Literal["diff_pruning", "taylor", "magnitude", "random"]
LOSSES = "losses"
HALVINGS = 12  # of the channel ratios between 0 and 1, when one is searched


def accumulate_gradients(
    unet: nn.Module, calibration: Calibration, threshold: float, every: int = 1, rows: int = 32, seed: int = 0
) -> list[float]:
    """Adds the gradients of L_0 + L_every + ... to `unet`'s parameters and returns the losses that went in.

    The batch is the first `rows` of calibration.data(), its noise is seeded by (seed, row). threshold: a share of the
    largest loss so far, from 0 (all timesteps) to 1. InputError for an empty calibration set and a loss that is no number.
    """
    check_learns_from_noise(calibration.scheduler, "timestep_cond" in calibration.conditions)
    latents, conditions = training_rows(calibration.data)
    latents, conditions = latents[:rows], {name: value[:rows] for name, value in conditions.items()}
    noise = seeded_normal([mix_seed(seed, 2, row) for row in range(len(latents))], latents.shape[1:]).to(latents)
    process = noise_process(calibration.scheduler)
    visited = range(0, process.steps, every)
    losses: list[float] = []
    with progress_bar("gradients by timestep", len(visited)) as bar, torch.enable_grad():
        for timestep in visited:
            timesteps = process.timesteps(torch.full((len(latents),), timestep, device=latents.device))
            noisy = process.add_noise(latents, noise, timesteps)
            prediction = predict(unet, noisy, timesteps, conditions)
            loss = F.mse_loss(prediction, process.target(latents, noise, timesteps))
            value = loss.item()
            if not torch.isfinite(loss):
                raise InputError(f"The loss at timestep {timestep} is {value}; are the teacher's weights finite?")
            if value < threshold * max([value, *losses]):
                break
            loss.backward()
            losses.append(value)
            bar.advance(note=f"loss {value:.3f}")
    return losses


@dataclass(frozen=True)
class Trial:
    """What pruning at a channel ratio gives, and the share of the parameters that it removes."""

    channel_ratio: float
    pruning: ChannelPruning
    removed: float


def check_channels(denoiser: nn.Module) -> None:
    """InputError for a diffusion transformer, whose channels are shared by all of its blocks."""
    if any(True for _ in architecture_of(denoiser).blocks(denoiser)):
        raise InputError(
            f"method=diff_pruning removes channels of U-Nets, and a {type(denoiser).__name__} has one width for all of its "
            "blocks; its blocks and their halves go by laptop_diff, ld_pruner, magnitude or random_layers, single weights by "
            "l1_diff."
        )


def nearest_trial(prune: Callable[[float], Trial], parameters: float) -> Trial:
    """The trial that removes the share of the parameters nearest to `parameters`, by bisection over channel ratios.

    More channels never leave more parameters, but they go in steps. InputError for a share below what the least step removes,
    or above what goes before the layers are too narrow to work.
    """
    with progress_bar("searching channel ratio", HALVINGS + 1) as bar:
        below = prune(0.5**HALVINGS)
        above: Trial | None = None
        bar.advance()
        if parameters < below.removed:
            raise _too_few(parameters, below)
        low, high = 0.0, 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            try:
                trial = prune(middle)
            except InputError:  # too narrow for a norm; what else may be wrong does not depend on the ratio, and is told above
                high = middle
            else:
                if trial.removed < parameters:
                    low, below = middle, trial
                else:
                    high, above = middle, trial
            bar.advance()
    if above is None:
        if below.removed < parameters:
            most = math.floor(1e4 * below.removed) / 1e4
            raise InputError(f"method.parameters={parameters}: the most channels that can go are {most} of the parameters.")
        return below
    if not below.removed and above.removed > parameters:
        raise _too_few(parameters, above)
    return min((below, above), key=lambda trial: abs(trial.removed - parameters))


def _too_few(parameters: float, least: Trial) -> InputError:
    share = math.ceil(1e4 * least.removed) / 1e4
    return InputError(f"method.parameters={parameters}: the fewest channels that can go are {share} of the parameters.")


@dataclass
class DiffPruning(Method):
    """Removes a share of the channels of every layer, not whole layers.

    ratio: the share of channels, in (0, 1). rounding: "down" or "up", of the channels that go from a norm's group or a head
    (common.pruning.channels); the plan's settings tell what was reached, of all channels and in the groups. round_to: the
    channels left of a layer are rounded up to a multiple of it. parameters: instead of the ratio, the share of the parameters,
    in (0, 1); the ratio is the one that comes nearest (nearest_trial). budget: or else what the student may take
    (common.pruning.budget). variant, threshold: above. every: the stride of visited timesteps; the paper visits each. rows: of
    the calibration data in the one batch; all of them where there are fewer. exclude: shell patterns over module paths, whose
    outputs keep their width. seed: of the noise, and of the random variant.
    """

    knob: ClassVar[str] = "ratio"
    ratio: Share | None
    parameters: Share | None
    rounding: Rounding
    variant: Variant
    threshold: Probability
    every: AtLeastOne
    rows: AtLeastOne
    exclude: tuple[str, ...]
    seed: Seed
    budget: Budget | None = None
    round_to: AtLeastOne = 1

    def __post_init__(self) -> None:
        check_fields(self, "method")
        check_one_given(ratio=self.ratio, parameters=self.parameters, budget=self.budget)
        if self.budget is not None:
            bounds_of(self)

    def plan(self, unet: nn.Module, calibration: Calibration, teacher: str, scores: Path | None) -> Plan:
        """The plan for `unet`; accumulated gradients are kept in the folder `scores` for other ratios and exclusions.

        `teacher` names the weights (LatentDiffusion.fingerprint). The plan's scores are shares: how much of a group's
        importance went. InputError for a share of the parameters that is out of reach.
        """
        check_channels(unet)
        losses: list[float] = []
        gradients: dict[str, torch.Tensor] = {}
        if self.variant in ("diff_pruning", "taylor"):
            losses, gradients = self._gradients(unet, calibration, teacher, scores)
        return self._plan(unet, losses, gradients, teacher)

    def _plan(self, unet: nn.Module, losses: list[float], gradients: dict[str, torch.Tensor], teacher: str) -> Plan:
        prune = partial(self._trial, unet, gradients)
        share = next(given for given in (self.ratio, self.parameters) if given is not None)
        found = prune(share) if self.parameters is None else nearest_trial(prune, share)
        if not found.pruning.edits:
            raise InputError(
                f"A share of {found.channel_ratio} removes no channel: all are excluded, or in too narrow norm groups and "
                "heads, or of too few channels for method.round_to; method.rounding=up removes at least one of each."
            )
        names = ("channel_ratio_reached", "least_in_a_group_reached", "most_in_a_group_reached")
        reached = dict(zip(names, found.pruning.shares, strict=True)) | {"ratio_reached": found.removed}
        settings = asdict(self) | {"exclude": list(self.exclude), "channel_ratio": found.channel_ratio} | reached
        return Plan(
            method="diff_pruning",
            edits=found.pruning.edits,
            teacher=teacher,
            scores=found.pruning.scores,
            settings=settings | ({"timesteps_counted": len(losses)} if losses else {}),
            tensors=found.pruning.kept,
        )

    def forecast(self, unet: nn.Module, size: CalibrationSize) -> Forecast:
        """Every timestep, which a threshold undercuts; how many channels stay follows from the ratio, whichever they are.

        For a share of the parameters the ratio is not searched: a ratio r leaves about (1 - r)^2 of them.
        """
        check_channels(unet)
        ratio = self.ratio if self.parameters is None else 1 - math.sqrt(1 - self.parameters)
        plan = replace(self, variant="random", ratio=ratio, parameters=None)._plan(unet, [], {}, "")
        scored = self.variant in ("diff_pruning", "taylor")
        samples = math.ceil(size.timesteps / self.every) * min(self.rows, size.rows) if scored else 0
        return Forecast(
            forward=samples,
            backward=samples,
            batch=min(self.rows, size.rows) if scored else 0,
            plan=plan,
            exact=self.ratio is not None,
            note="scoring: every timestep, which the threshold undercuts" if scored else "",
        )

    def _trial(self, unet: nn.Module, gradients: dict[str, torch.Tensor], channel_ratio: float) -> Trial:
        """Prunes a copy of `unet` that has the gradients beside its weights."""
        pruned = copy.deepcopy(unet).requires_grad_(True).eval()
        for name, parameter in pruned.named_parameters():
            parameter.grad = gradients.get(name)
        pruning = prune_channels(pruned, channel_ratio, self._importance(), self.exclude, self.rounding, self.round_to)
        return Trial(channel_ratio, pruning, 1 - count_parameters(pruned) / count_parameters(unet))

    def _importance(self) -> Importance:
        """A number per channel of a group; the Taylor variants read the gradients beside the weights."""
        from torch_pruning import importance

        if self.variant == "random":
            return lambda group, site: torch.rand(len(group[0].idxs), generator=generator_for(self.seed, crc32(site.encode())))
        if self.variant == "magnitude":
            scorer = importance.GroupMagnitudeImportance(normalizer=None)
        else:
            scorer = importance.GroupTaylorImportance(normalizer=None, multivariable=self.variant == "taylor")
        return lambda group, site: scorer(group)

    def _gradients(
        self, unet: nn.Module, calibration: Calibration, teacher: str, folder: Path | None
    ) -> tuple[list[float], dict[str, torch.Tensor]]:
        """Losses, and gradients by parameter, of accumulate_gradients, or of an earlier job that left them in `folder`."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file, save

        counted = replace(self, threshold=0.0) if self.variant == "taylor" else self
        options = {name: getattr(counted, name) for name in ("threshold", "every", "rows", "seed")}
        path = None
        if folder is not None:
            name = content_name("diff_pruning", options, calibration.data_fingerprint(), teacher)
            path = folder / f"{name}.safetensors"
        if path is not None and path.is_file():
            try:
                known = load_file(path)
            except SafetensorError as error:
                raise InputError(f"The gradients in {path} are damaged; delete it and they are computed anew.") from error
            losses = known.pop(LOSSES).tolist()
            return losses, {name: known[name].to(parameter) for name, parameter in unet.named_parameters()}
        trained = copy.deepcopy(unet).requires_grad_(True).eval()
        losses = accumulate_gradients(trained, calibration, **options)
        gradients = {
            name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for name, parameter in trained.named_parameters()
        }
        if path is not None and is_first():
            kept = {name: gradient.cpu().contiguous() for name, gradient in gradients.items()}
            write_atomically(path, save(kept | {LOSSES: torch.tensor(losses)}))
        return losses, gradients
