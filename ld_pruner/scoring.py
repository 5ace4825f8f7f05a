"""Scores of all operators by full denoising (LD-Pruner, Algorithm 1), without doing all the work.

exact:    every operator is scored under every condition.
screened: a cheap score ranks the operators first: each is edited in one forward pass on noisy latents of the teacher's own
          trajectory. The first k of that ranking are scored in full; all others one condition at a time. The score is a
          sum over conditions of numbers that are never negative, so an operator whose partial sum exceeds the k-th lowest
          full score so far cannot be among the k lowest, and is dropped: the k lowest are the exact ones, whatever the
          screen says; a good screen only saves time.

Several processes compute the next forward passes at the same time, one each; where the result of one makes another unneeded,
that is thrown away: the scores are those of one process.

In both, several modified networks share one forward pass (common/branches.py). Every finished piece is written to the score
file at once. What is computed next depends on that file alone, so a killed run goes on where it was, with the same numbers.
"""

from collections.abc import Callable

import torch
from torch import nn

from common.branches import edited_outputs
from common.calibration import Calibration
from common.collectives import shared_out
from common.errors import InputError
from common.processes import process_count
from common.roll_out import noisy_latents, roll_out
from common.score_file import ScoreFile
from ld_pruner.latent_score import latent_score
from ld_pruner.operators import Operator

Pass = tuple[tuple[str, ...], int, int]
"""The sites of operators that share a forward pass, and the first and the end of the conditions they are scored under."""


class LatentScorer:
    """Scores operators of `unet`, which is edited during a forward pass and restored after it.

    rows: how many latents one forward pass may hold, guidance not counted. formula, squared, correction: how they are
    compared (ld_pruner.latent_score).
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
    ):
        self.unet, self.calibration, self.tensors = unet, calibration, tensors
        self.formula, self.squared, self.correction = formula, squared, correction
        self.pairs = max(1, rows // calibration.shape[1])  # (operator, condition) pairs in one forward pass
        self.originals: torch.Tensor | None = None

    @torch.no_grad()
    def original_latents(self) -> torch.Tensor:
        """Final latents (conditions, samples, *latent) of the network without any operator modified, computed once.

        To be called first where edits are to be made to the network between that and scoring.
        """
        if self.originals is None:
            starts = range(0, self.calibration.shape[0], self.pairs)
            finished = shared_out(
                starts, lambda start: roll_out(self.unet, self.calibration, slice(start, start + self.pairs))[0].cpu()
            )
            self.originals = torch.cat(finished).to(self.calibration.noise.device)
        return self.originals

    def score_pairs(self, operators: list[Operator], chosen: slice) -> torch.Tensor:
        """Scores (operators, conditions) under the chosen conditions."""
        original = self.original_latents()[chosen]
        edits = [operator.edit for operator in operators]
        modified = roll_out(self.unet, self.calibration, chosen, edits, self.tensors)
        scores = [latent_score(original, latents, self.formula, self.squared, self.correction) for latents in modified]
        return torch.stack(scores).nan_to_num(nan=float("inf"))  # latents that exploded rank last

    @torch.no_grad()
    def screen(self, operators: list[Operator], rows: int, seed: int) -> dict[str, float]:
        """Distance of the modified network's output from the intact one's, on noisy latents of the teacher's trajectory.

        One forward pass an operator at most: what all copies have in common before the first edit is replayed.
        """
        latents, timesteps, conditions = noisy_latents(self.unet, self.calibration, rows, seed)
        copies = max(1, self.pairs * self.calibration.shape[1] // rows)
        edits = [operator.edit for operator in operators]

        def distance(intact: torch.Tensor, output: torch.Tensor) -> float:
            return (output.float() - intact.float()).flatten(1).norm(dim=1).mean().item()

        return edited_outputs(self.unet, edits, self.tensors, (latents, timesteps), conditions, copies, distance)

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
        report: Callable[[int], None] = lambda finished: None,
    ) -> dict[str, float]:
        """Full scores (sums over conditions) of all operators ("exact"), or at least of those `lowest` in score / cost.

        `file` holds what is known already, and grows. `report` is told how many (operator, condition) pairs are finished,
        scored or not needed any more. Returns the operators whose score is complete.
        """
        if scoring not in ("exact", "screened"):
            raise InputError(f"scoring={scoring!r} is neither 'exact' nor 'screened'.")
        if scoring == "exact":
            lowest = len(operators)
        else:
            missing = [operator for operator in operators if operator.site not in file.screen]
            if missing:
                file.screen |= self.screen(missing, screen_rows, seed)
                file.save()
            operators = sorted(operators, key=lambda operator: file.screen[operator.site] / costs[operator.site])
        total = self.calibration.shape[0]
        ready: dict[Pass, list[list[float]]] = {}
        while True:
            waiting = self._waiting(operators, lowest, file, costs)
            finished = len(operators) * total - sum(total - len(file.known(operator.site)) for operator in waiting)
            report(finished)
            if not waiting:
                break
            first = [operator for operator in operators[:lowest] if operator in waiting] or waiting
            known = {operator.site: len(file.known(operator.site)) for operator in first}
            passes = self._passes([operator.site for operator in first], known)
            if passes[0] not in ready:
                self.original_latents()  # by all processes, before each goes its way
                by_site = {operator.site: operator for operator in operators}
                scores = shared_out(
                    passes,
                    lambda each, by_site=by_site: self.score_pairs(
                        [by_site[site] for site in each[0]], slice(*each[1:])
                    ).tolist(),
                )
                ready = dict(zip(passes, scores, strict=True))
            for site, values in zip(passes[0][0], ready.pop(passes[0]), strict=True):
                file.parts[site] = file.known(site) + values
            file.save()
        return {o.site: sum(file.known(o.site)) for o in operators if len(file.known(o.site)) == total}

    def _passes(self, sites: list[str], known: dict[str, int]) -> list[Pass]:
        """The next forward passes over `sites`, one for each process, as they follow if none is dropped in between.

        known: under how many conditions each is scored already.
        """
        total, known = self.calibration.shape[0], dict(known)
        passes: list[Pass] = []
        while len(passes) < process_count():
            incomplete = [site for site in sites if known[site] < total]
            if not incomplete:
                break
            start = min(known[site] for site in incomplete)
            group = tuple(site for site in incomplete if known[site] == start)[: self.pairs]
            stop = min(total, start + max(1, self.pairs // len(group)))
            passes.append((group, start, stop))
            known |= dict.fromkeys(group, stop)
        return passes

    def _waiting(self, operators: list[Operator], lowest: int, file: ScoreFile, costs: dict[str, float]) -> list[Operator]:
        """Those without a complete score that can still be among the `lowest`."""
        total = self.calibration.shape[0]
        partial = {operator.site: sum(file.known(operator.site)) / costs[operator.site] for operator in operators}
        incomplete = [operator for operator in operators if len(file.known(operator.site)) < total]
        complete = sorted(partial[o.site] for o in operators if len(file.known(o.site)) == total)
        if lowest > len(complete):
            return incomplete
        return [operator for operator in incomplete if lowest and partial[operator.site] <= complete[lowest - 1]]
