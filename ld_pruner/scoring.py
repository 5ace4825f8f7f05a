"""Scores of all operators by full denoising (LD-Pruner, Algorithm 1), without doing all the work.

exact:    every operator is scored under every condition.
screened: a cheap score ranks the operators first: each is edited in one forward pass on noisy latents of the teacher's own
          trajectory. Then they are scored exactly in that order. The score is a sum over conditions of numbers that are
          never negative, so an operator whose partial sum exceeds the k-th lowest full score so far cannot be among the k
          lowest, and is dropped: the k lowest are the exact ones, whatever the screen says; a good screen only saves time.

In both, several modified networks share one forward pass (common/branches.py). Every finished piece is written to the score
file at once; a killed run goes on where it was.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from common.branches import PrefixCache, branched
from common.calibration import Calibration
from common.errors import InputError
from common.files import write_json
from common.sampling import denoise
from ld_pruner.latent_score import latent_score
from ld_pruner.operators import Operator


@dataclass
class ScoreFile:
    """Scores by site, one number per finished condition; kept in `path` when it is given."""

    path: Path | None = None
    conditions: dict[str, list[float]] = field(default_factory=dict)
    screen: dict[str, float] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path | None) -> "ScoreFile":
        """The scores in `path`, or none yet; InputError naming the file when it is damaged."""
        if path is None or not path.is_file():
            return cls(path)
        try:
            document = json.loads(path.read_text())
            return cls(path, document["conditions"], document["screen"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(f"The score file {path} is damaged; delete it and the scores are computed anew.") from error

    def save(self) -> None:
        if self.path is not None:
            write_json(self.path, {"conditions": self.conditions, "screen": self.screen})


class LatentScorer:
    """Scores operators of `unet`, which is edited during a forward pass and restored after it.

    rows: how many latents one forward pass may hold, guidance not counted; copies: how many modified networks share one.
    settings of the score: formula, squared, correction (ld_pruner.latent_score).
    """

    def __init__(
        self,
        unet: nn.Module,
        calibration: Calibration,
        tensors: dict[str, torch.Tensor],
        *,
        formula: str = "sum",
        squared: bool = False,
        correction: int = 0,
        rows: int = 128,
        copies: int = 8,
        advance: Callable[[int], None] = lambda count: None,
    ):
        self.unet, self.calibration, self.tensors = unet, calibration, tensors
        self.formula, self.squared, self.correction = formula, squared, correction
        self.copies, self.advance = copies, advance
        self.chunk = max(1, rows // (copies * calibration.shape[1]))  # conditions a forward pass holds for each copy
        self.originals: dict[int, torch.Tensor] = {}
        self.trajectory: list[tuple[torch.Tensor, torch.Tensor]] = []

    def _roll_out(self, chosen: slice, operators: list[Operator]) -> torch.Tensor:
        """Final latents (copies, conditions, samples, *latent) of the networks with one of the operators modified each."""
        copies = max(1, len(operators))
        noise, conditions = self.calibration.rows(chosen, copies)
        guided = self.calibration.guidance_scale > 1 and bool(conditions)
        edits = [operator.edit for operator in operators]
        with branched(self.unet, edits, self.tensors, groups=2 if guided else 1):
            latents = denoise(
                self.unet,
                self.calibration.scheduler,
                noise,
                conditions,
                self.calibration.empty,
                self.calibration.steps,
                self.calibration.guidance_scale,
            )
        return latents.unflatten(0, (copies, -1, self.calibration.shape[1]))

    def _original(self, start: int) -> torch.Tensor:
        """Final latents of the intact network for the conditions from `start`, computed once."""
        if start not in self.originals:
            self.originals[start] = self._roll_out(slice(start, start + self.chunk), [])[0]
        return self.originals[start]

    def score_chunk(self, operators: list[Operator], start: int) -> torch.Tensor:
        """Scores (operators, conditions) for the conditions from `start` to `start` + chunk."""
        original = self._original(start)
        modified = self._roll_out(slice(start, start + self.chunk), operators)
        scores = [latent_score(original, latents, self.formula, self.squared, self.correction) for latents in modified]
        return torch.stack(scores)

    @torch.no_grad()
    def screen(self, operators: list[Operator], rows: int, seed: int) -> dict[str, float]:
        """Distance of the modified network's output from the intact one's, on noisy latents of the teacher's trajectory.

        One forward pass an operator at most: what all copies have in common before the first edit is replayed.
        """
        latents, timesteps, conditions = self._noisy_latents(rows, seed)
        cache = PrefixCache(self.unet)
        intact = cache.record(latents, timesteps, **conditions)
        ordered = sorted(operators, key=lambda operator: cache.position(operator.site))
        scores = {}
        for first in range(0, len(ordered), self.copies):
            group = ordered[first : first + self.copies]
            blocks = min(cache.position(operator.site) for operator in group)
            repeated = {name: value.repeat(len(group), *[1] * (value.dim() - 1)) for name, value in conditions.items()}
            with (
                branched(self.unet, [operator.edit for operator in group], self.tensors),
                cache.replayed(blocks, len(group)),
            ):
                output = self.unet(latents.repeat(len(group), 1, 1, 1), timesteps.repeat(len(group)), **repeated).sample
            distances = (output.unflatten(0, (len(group), -1)) - intact).flatten(2).norm(dim=2).mean(1)
            scores |= {operator.site: distance.item() for operator, distance in zip(group, distances, strict=True)}
        return scores

    def _noisy_latents(self, rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Noised final latents of the intact network, spread evenly over the timesteps, with their conditions."""
        from common.batches import mix_seed, seeded_normal

        chosen = slice(0, -(-rows // self.calibration.shape[1]))
        latents = self._roll_out(chosen, [])[0].flatten(0, 1)[:rows]
        _, conditions = self.calibration.rows(chosen)
        scheduler = self.calibration.scheduler
        total = scheduler.config.num_train_timesteps
        timesteps = (torch.arange(len(latents)) * total // len(latents) + total // (2 * len(latents))).to(latents.device)
        noise = seeded_normal([mix_seed(seed, row) for row in range(len(latents))], latents.shape[1:]).to(latents)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        return noisy, timesteps, {name: value[: len(latents)] for name, value in conditions.items()}

    def keep_originals(self) -> None:
        """Computes the intact network's latents for all conditions now, before edits are made to it."""
        for start in range(0, self.calibration.shape[0], self.chunk):
            self._original(start)

    @torch.no_grad()
    def score(
        self,
        operators: list[Operator],
        lowest: int,
        scoring: str,
        file: ScoreFile,
        costs: dict[str, float],
        screen_rows: int,
        seed: int,
    ) -> dict[str, float]:
        """Full scores (sums over conditions) of all operators, or at least of those `lowest` in score / cost.

        `file` holds what is known already, and grows. Returns the operators whose score is complete.
        """
        if scoring not in ("exact", "screened"):
            raise InputError(f"scoring={scoring!r} is neither 'exact' nor 'screened'.")
        total = self.calibration.shape[0]
        sites = {operator.site for operator in operators}
        if scoring == "screened":
            missing = [operator for operator in operators if operator.site not in file.screen]
            if missing:
                file.screen |= self.screen(missing, screen_rows, seed)
                file.save()
            operators = sorted(operators, key=lambda operator: file.screen[operator.site] / costs[operator.site])

        def partial(site: str) -> float:
            return sum(file.conditions.get(site, [])) / costs[site]

        def bound() -> float:
            complete = sorted(partial(site) for site in sites if len(file.conditions.get(site, [])) == total)
            return complete[lowest - 1] if scoring == "screened" and 0 < lowest <= len(complete) else float("inf")

        for first in range(0, len(operators), self.copies):
            group = operators[first : first + self.copies]
            for start in range(0, total, self.chunk):
                limit = bound()
                group = [operator for operator in group if partial(operator.site) <= limit]
                end = min(start + self.chunk, total)
                waiting = [operator for operator in group if len(file.conditions.get(operator.site, [])) < end]
                if waiting:
                    for operator, values in zip(waiting, self.score_chunk(waiting, start).tolist(), strict=True):
                        file.conditions[operator.site] = file.conditions.get(operator.site, [])[:start] + values
                    file.save()
            self.advance(len(operators[first : first + self.copies]))
        return {site: sum(file.conditions[site]) for site in sites if len(file.conditions.get(site, [])) == total}
