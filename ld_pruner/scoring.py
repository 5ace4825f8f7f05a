"""Scores of all operators by full denoising (LD-Pruner, Algorithm 1), without doing all the work.

exact:    every operator is scored under every condition.
screened: a cheap score ranks the operators first: each is edited in one forward pass on noisy latents of the teacher's own
          trajectory. The first k of that ranking are scored in full; all others one condition at a time. The score is a
          sum over conditions of numbers that are never negative, so an operator whose partial sum exceeds the k-th lowest
          full score so far cannot be among the k lowest, and is dropped: the k lowest are the exact ones, whatever the
          screen says; a good screen only saves time.

In both, several modified networks share one forward pass (common/branches.py). Every finished piece is written to the score
file at once. What is computed next depends on that file alone, so a killed run goes on where it was, with the same numbers.
"""

from collections.abc import Callable

import torch
from torch import nn

from common.branches import edited_outputs, roll_out
from common.calibration import Calibration
from common.errors import InputError
from common.score_file import ScoreFile
from ld_pruner.latent_score import latent_score
from ld_pruner.operators import Operator


class LatentScorer:
    """Scores operators of `unet`, which is edited during a forward pass and restored after it.

    rows: how many latents one forward pass may hold, guidance not counted. formula, squared, correction: how they are
    compared (ld_pruner.latent_score). advance: called with the number of (operator, condition) pairs that are finished,
    scored or not needed any more.
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
        advance: Callable[[int], None] = lambda count: None,
    ):
        self.unet, self.calibration, self.tensors = unet, calibration, tensors
        self.formula, self.squared, self.correction = formula, squared, correction
        self.advance = advance
        self.pairs = max(1, rows // calibration.shape[1])  # (operator, condition) pairs in one forward pass
        self.originals: torch.Tensor | None = None
        self.reported = 0

    @torch.no_grad()
    def original_latents(self) -> torch.Tensor:
        """Final latents (conditions, samples, *latent) of the network without any operator modified, computed once.

        To be called first where edits are to be made to the network between that and scoring.
        """
        if self.originals is None:
            starts = range(0, self.calibration.shape[0], self.pairs)
            self.originals = torch.cat([roll_out(self.unet, self.calibration, slice(s, s + self.pairs))[0] for s in starts])
        return self.originals

    def score_pairs(self, operators: list[Operator], chosen: slice) -> torch.Tensor:
        """Scores (operators, conditions) under the chosen conditions."""
        original = self.original_latents()[chosen]
        edits = [operator.edit for operator in operators]
        modified = roll_out(self.unet, self.calibration, chosen, edits, self.tensors)
        scores = [latent_score(original, latents, self.formula, self.squared, self.correction) for latents in modified]
        return torch.stack(scores)

    @torch.no_grad()
    def screen(self, operators: list[Operator], rows: int, seed: int) -> dict[str, float]:
        """Distance of the modified network's output from the intact one's, on noisy latents of the teacher's trajectory.

        One forward pass an operator at most: what all copies have in common before the first edit is replayed.
        """
        latents, timesteps, conditions = self._noisy_latents(rows, seed)
        copies = max(1, self.pairs * self.calibration.shape[1] // rows)
        edits = [operator.edit for operator in operators]
        scores = {}
        outputs = edited_outputs(self.unet, edits, self.tensors, (latents, timesteps), conditions, copies)
        for edit, intact, output in outputs:
            scores[edit.site] = (output - intact).flatten(1).norm(dim=1).mean().item()
        return scores

    def _noisy_latents(self, rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Noised final latents of the intact network, spread evenly over the timesteps, with their conditions."""
        from common.batches import mix_seed, seeded_normal

        chosen = slice(0, -(-rows // self.calibration.shape[1]))
        latents = roll_out(self.unet, self.calibration, chosen)[0].flatten(0, 1)[:rows]
        _, conditions = self.calibration.rows(chosen)
        scheduler = self.calibration.scheduler
        total = scheduler.config.num_train_timesteps
        timesteps = (torch.arange(len(latents)) * total // len(latents) + total // (2 * len(latents))).to(latents.device)
        noise = seeded_normal([mix_seed(seed, row) for row in range(len(latents))], latents.shape[1:]).to(latents)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        return noisy, timesteps, {name: value[: len(latents)] for name, value in conditions.items()}

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
        if scoring == "screened":
            missing = [operator for operator in operators if operator.site not in file.screen]
            if missing:
                file.screen |= self.screen(missing, screen_rows, seed)
                file.save()
            operators = sorted(operators, key=lambda operator: file.screen[operator.site] / costs[operator.site])
        else:
            lowest = 0
        total = self.calibration.shape[0]
        while True:
            waiting = self._waiting(operators, lowest, file, costs)
            finished = len(operators) * total - sum(total - len(file.known(operator.site)) for operator in waiting)
            self.advance(finished - self.reported)
            self.reported = finished
            if not waiting:
                break
            first = [operator for operator in operators[:lowest] if operator in waiting] or waiting
            start = min(len(file.known(operator.site)) for operator in first)
            group = [operator for operator in first if len(file.known(operator.site)) == start][: self.pairs]
            stop = min(total, start + max(1, self.pairs // len(group)))
            for operator, values in zip(group, self.score_pairs(group, slice(start, stop)).tolist(), strict=True):
                file.parts[operator.site] = file.known(operator.site) + values
            file.save()
        return {o.site: sum(file.known(o.site)) for o in operators if len(file.known(o.site)) == total}

    def _waiting(self, operators: list[Operator], lowest: int, file: ScoreFile, costs: dict[str, float]) -> list[Operator]:
        """Those without a complete score that can still be among the `lowest`; with lowest=0, all without one."""
        total = self.calibration.shape[0]
        partial = {operator.site: sum(file.known(operator.site)) / costs[operator.site] for operator in operators}
        incomplete = [operator for operator in operators if len(file.known(operator.site)) < total]
        complete = sorted(partial[o.site] for o in operators if len(file.known(o.site)) == total)
        if not 0 < lowest <= len(complete):
            return incomplete
        return [operator for operator in incomplete if partial[operator.site] <= complete[lowest - 1]]
