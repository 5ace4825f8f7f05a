"""Diff-Pruning (Fang, Ma, Wang, NeurIPS 2023, arXiv 2305.10924): channels by a Taylor expansion over pruned timesteps.

    L_t = E || target - student(x_t, t, c) ||^2            at every timestep t, on one batch and one noise
    importance of a channel = sum_k | w_k dL/dw_k |        over its weights w_k, with L = L_0 + L_1 + ... + L_T'

Timesteps are visited from 0, the least noisy one, on. The loop stops at the first t with L_t < threshold * max_{s<=t} L_s:
what is nearly solved there, noise in noise, tells little about the weights. As in the authors' code for latent diffusion,
the step that stops the loop does not count (their code for pixels counts it). The paper's thresholds are for networks that
predict the noise; where velocity is predicted, L_t has a floor (0.21 of the largest on the shipped teacher) and the loop
runs to the end unless the threshold is above it.

The importance of a channel is the mean over the layers that it ties together (torch-pruning's group importances). The
variants are the paper's comparisons:

    diff_pruning  sum_k | w_k g_k |, timesteps until the threshold
    taylor        | sum_k w_k g_k |, all timesteps
    magnitude     sum_k w_k^2, no data
    random        a seeded uniform number per channel, no data
"""

import copy
import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from zlib import crc32

import torch
from torch import nn
from torch.nn import functional as F

from common.batches import generator_for, mix_seed, seeded_normal
from common.calibration import Calibration
from common.channels import Importance, prune_channels
from common.cost import count_parameters
from common.distillation import noising_scheduler, training_target
from common.errors import InputError
from common.files import write_atomically
from common.plans import Plan
from common.progress import progress_bar

VARIANTS = ("diff_pruning", "taylor", "magnitude", "random")
LOSSES = "losses"


def accumulate_gradients(
    unet: nn.Module, calibration: Calibration, threshold: float, every: int = 1, rows: int = 32, seed: int = 0
) -> list[float]:
    """Adds the gradients of L_0 + L_every + ... to `unet`'s parameters and returns the losses that went in.

    The batch is the first `rows` of calibration.data(), its noise is seeded by (seed, row). threshold: a share of the
    largest loss so far, from 0 (all timesteps) to 1. InputError for an empty calibration set and a loss that is no number.
    """
    latents, conditions = calibration.data()
    if not len(latents):
        raise InputError("The calibration set is empty: calibration.data_rows must be at least 1.")
    latents, conditions = latents[:rows], {name: value[:rows] for name, value in conditions.items()}
    noise = seeded_normal([mix_seed(seed, 2, row) for row in range(len(latents))], latents.shape[1:]).to(latents)
    scheduler = noising_scheduler(calibration.scheduler)
    visited = range(0, scheduler.config.num_train_timesteps, every)
    losses: list[float] = []
    with progress_bar("gradients by timestep", len(visited)) as bar, torch.enable_grad():
        for timestep in visited:
            timesteps = torch.full((len(latents),), timestep, device=latents.device)
            noisy = scheduler.add_noise(latents, noise, timesteps)
            prediction = unet(noisy, timesteps, **conditions).sample
            loss = F.mse_loss(prediction, training_target(scheduler, latents, noise, timesteps))
            value = loss.item()
            if not torch.isfinite(loss):
                raise InputError(f"The loss at timestep {timestep} is {value}; are the teacher's weights finite?")
            if value < threshold * max([value, *losses]):
                break
            loss.backward()
            losses.append(value)
            bar.advance(note=f"loss {value:.3f}")
    return losses


@dataclass
class DiffPruning:
    """A method (see README). Removes a share of the channels of every layer, not whole layers.

    ratio: the share of channels, in (0, 1); parameters and MACs shrink by about its double, and more where norm groups are
    small (common.channels). variant, threshold: above. every: the stride of visited timesteps; the paper visits each.
    rows: rows of the calibration data in the one batch; all of them where there are fewer. exclude: shell patterns over
    module paths, whose outputs keep their width. seed: of the noise, and of the random variant.
    """

    ratio: float
    variant: str
    threshold: float
    every: int
    rows: int
    exclude: tuple[str, ...]
    seed: int

    def plan(self, unet: nn.Module, calibration: Calibration, teacher: str, scores: Path | None) -> Plan:
        """The plan for `unet`; accumulated gradients are kept in the folder `scores` for other ratios and exclusions.

        `teacher` names the weights (Teacher.fingerprint). The plan's scores are shares: how much of a group's importance went.
        """
        if self.variant not in VARIANTS:
            raise InputError(f"method.variant={self.variant!r} is none of {', '.join(VARIANTS)}.")
        if not 0 < self.ratio < 1:
            raise InputError(f"method.ratio={self.ratio}: a share between 0 and 1 is needed.")
        if not 0 <= self.threshold <= 1:
            raise InputError(f"method.threshold={self.threshold}: a share from 0 to 1 is needed.")
        for setting in ("every", "rows"):
            if getattr(self, setting) < 1:
                raise InputError(f"method.{setting}={getattr(self, setting)}: at least 1 is needed.")
        pruned = copy.deepcopy(unet).requires_grad_(True).eval()
        losses = []
        if self.variant in ("diff_pruning", "taylor"):
            losses = self._gradients(pruned, calibration, teacher, scores)
        found = prune_channels(pruned, self.ratio, self._importance(), self.exclude)
        reached = 1 - count_parameters(pruned) / count_parameters(unet)
        settings = asdict(self) | {"exclude": list(self.exclude), "ratio_reached": reached}
        return Plan(
            method="diff_pruning",
            edits=found.edits,
            teacher=teacher,
            scores=found.scores,
            settings=settings | ({"timesteps_counted": len(losses)} if losses else {}),
            tensors=found.kept,
        )

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

    def _gradients(self, unet: nn.Module, calibration: Calibration, teacher: str, folder: Path | None) -> list[float]:
        """accumulate_gradients, or what an earlier job has left of it in `folder`; returns the losses."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file, save

        counted = replace(self, threshold=0.0) if self.variant == "taylor" else self
        options = {name: getattr(counted, name) for name in ("threshold", "every", "rows", "seed")}
        path = None
        if folder is not None:
            text = json.dumps(["diff_pruning", options, calibration.data_fingerprint(), teacher], sort_keys=True)
            path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"
        if path is not None and path.is_file():
            try:
                known = load_file(path)
            except SafetensorError as error:
                raise InputError(f"The gradients in {path} are damaged; delete it and they are computed anew.") from error
            losses = known.pop(LOSSES).tolist()
            for name, parameter in unet.named_parameters():
                parameter.grad = known[name].to(parameter)
            return losses
        losses = accumulate_gradients(unet, calibration, **options)
        for parameter in unet.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        if path is not None:
            gradients = {name: parameter.grad.cpu().contiguous() for name, parameter in unet.named_parameters()}
            write_atomically(path, save(gradients | {LOSSES: torch.tensor(losses)}))
        return losses
