"""Scores of all operators by full denoising (LD-Pruner, Algorithm 1), without doing all the work.

exact:    every operator is scored under every condition.
screened: all are scored under the first condition, which ranks them. The first k of that ranking are scored in full; all
          others a few conditions at a time. The score is a sum over conditions of numbers that are never negative, so an
          operator whose partial sum exceeds the k-th lowest full score so far cannot be among the k lowest, and is dropped:
          the k lowest are the exact ones, whatever the ranking says; a good one only saves time.

In both, several modified networks share one forward pass (common/scoring/edited_copies.py). What shares a pass changes the last
bits of a score, and so it is fixed (`Passes`): it follows from the operators, the number of conditions and `rows` alone. A pass
is computed whole or not at all, and a score is the same number whatever else was asked for, before or beside it.

Several processes compute the next forward passes at the same time, one each; where the result of one makes another unneeded,
that is thrown away: the scores are those of one process. Every finished pass is written to the score file at once, and is
read from there where it is known: a killed run goes on where it was. Which passes count is decided anew in each run, as if
the file were empty, so that what a run returns does not depend on earlier ones either.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import nn

from common.errors import InputError
from common.runtime.collectives import shared_out
from common.runtime.processes import process_count
from common.scoring.calibration import Calibration
from common.scoring.score_file import ScoreFile
from common.scoring.trajectories import edited_latents
from ld_pruner.algorithm import latent_score
from ld_pruner.operators import Operator

Pass = tuple[tuple[str, ...], int, int]
"""The sites of operators that share a forward pass, and the first and the end of the conditions they are scored under."""


def condition_stages(total: int, most: int) -> list[tuple[int, int]]:
    """First and end of the conditions of each stage: one, then as many as all before it (1, 1, 2, 4, ...), `most` at once."""
    stages = [(0, 1)]
    while stages[-1][1] < total:
        start = stages[-1][1]
        stages.append((start, min(total, start + min(start, most))))
    return stages


def even_parts(sites: Sequence[str], most: int) -> list[tuple[str, ...]]:
    """The sites in order, in as few parts as hold `most` at most each."""
    size = -(-len(sites) // -(-len(sites) // most))
    return [tuple(sites[start : start + size]) for start in range(0, len(sites), size)]


class Passes:
    """Which operators share the forward passes of each stage of conditions; `pairs` of both, at most, go into one.

    In the first stage they lie as they are listed. From the second on they lie by their scores under the first condition, and
    the parts of a stage are parts of those of the stage before: whoever shares a pass has shared all before it but the first.
    """

    def __init__(self, sites: Sequence[str], conditions: int, pairs: int):
        self.sites, self.pairs = sites, pairs
        self.stages = condition_stages(conditions, pairs)
        self.begin = {start: stage for stage, (start, _) in enumerate(self.stages)}
        self.parts = [even_parts(sites, pairs)]

    def rank(self, first_scores: Mapping[str, float]) -> None:
        """Fixes the passes of the later stages, by every operator's score under the first condition."""
        parts = [tuple(sorted(self.sites, key=first_scores.__getitem__))]
        for start, stop in self.stages[1:]:
            parts = [smaller for part in parts for smaller in even_parts(part, max(1, self.pairs // (stop - start)))]
            self.parts.append(parts)

    def following(self, wanted: Collection[str], done: Mapping[str, int], count: int) -> list[Pass]:
        """The next passes, `count` at most, that complete the `wanted` sites: early conditions first.

        done: under how many conditions each site is scored already.
        """
        total, done = self.stages[-1][1], dict(done)
        passes: list[Pass] = []
        while len(passes) < count and (incomplete := {site for site in wanted if done[site] < total}):
            stage = self.begin[min(done[site] for site in incomplete)]
            if stage == len(self.parts):
                break  # it depends on the passes before it
            start, stop = self.stages[stage]
            part = next(part for part in self.parts[stage] if any(s in incomplete and done[s] == start for s in part))
            passes.append((part, start, stop))
            done |= dict.fromkeys(part, stop)
        return passes


class LatentScorer:
    """Scores operators of `unet`, which is edited during a forward pass and restored after it.

    rows: how many latents one forward pass may hold, guidance not counted. formula, squared, correction: how they are
    compared (ld_pruner.algorithm).
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
                starts, lambda start: edited_latents(self.unet, self.calibration, slice(start, start + self.pairs))[0].cpu()
            )
            self.originals = torch.cat(finished).to(self.calibration.noise.device)
        return self.originals

    def score_pairs(self, operators: list[Operator], chosen: slice) -> torch.Tensor:
        """Scores (operators, conditions) under the chosen conditions."""
        original = self.original_latents()[chosen]
        edits = [operator.edit for operator in operators]
        modified = edited_latents(self.unet, self.calibration, chosen, edits, self.tensors)
        scores = [latent_score(original, latents, self.formula, self.squared, self.correction) for latents in modified]
        return torch.stack(scores).nan_to_num(nan=float("inf"))  # latents that exploded rank last

    @torch.no_grad()
    def score(
        self,
        operators: list[Operator],
        lowest: int,
        scoring: str,
        file: ScoreFile,
        costs: dict[str, float],
        report: Callable[[int], None] = lambda finished: None,
    ) -> dict[str, float]:
        """Full scores (sums over conditions) of all operators ("exact"), or at least of those `lowest` in score / cost.

        `file` holds what is known already of these very operators, and grows. `report` is told how many (operator, condition)
        pairs are finished, scored or not needed any more. Returns the operators whose score is complete.
        """
        if scoring not in ("exact", "screened"):
            raise InputError(f"scoring={scoring!r} is neither 'exact' nor 'screened'.")
        lowest = len(operators) if scoring == "exact" else lowest
        total = self.calibration.shape[0]
        by_site = {operator.site: operator for operator in operators}
        passes = Passes(list(by_site), total, self.pairs)
        done = dict.fromkeys(by_site, 0)  # conditions that count; `file` may know more
        ready: dict[Pass, list[list[float]]] = {}
        while True:
            partial = {site: sum(file.known(site)[: done[site]]) / costs[site] for site in by_site}
            if len(passes.parts) == 1 and all(done.values()):
                passes.rank({site: file.known(site)[0] for site in by_site})
                ranked = sorted(by_site, key=partial.__getitem__)
            waiting = self._waiting(partial, done, total, lowest)
            report(len(by_site) * total - sum(total - done[site] for site in waiting))
            if not waiting:
                break
            first = list(by_site) if len(passes.parts) == 1 else [site for site in ranked[:lowest] if site in waiting]
            coming = passes.following(first or waiting, done, process_count())
            self._fill(coming, file, by_site, ready)
            sites, _, stop = coming[0]
            done |= dict.fromkeys(sites, stop)
        return {site: sum(file.known(site)[:total]) for site in by_site if done[site] == total}

    def _fill(
        self, coming: list[Pass], file: ScoreFile, by_site: dict[str, Operator], ready: dict[Pass, list[list[float]]]
    ) -> None:
        """Enters the first of the coming passes in `file`; what the others of this job's processes compute waits in `ready`."""

        def known(each: Pass) -> bool:
            return each in ready or all(len(file.known(site)) >= each[2] for site in each[0])

        if not known(coming[0]):
            missing = [each for each in coming if not known(each)]
            self.original_latents()  # by all processes, before each goes its way
            scores = shared_out(
                missing, lambda each: self.score_pairs([by_site[site] for site in each[0]], slice(*each[1:])).tolist()
            )
            ready |= zip(missing, scores, strict=True)
        if coming[0] in ready:
            sites, start, _ = coming[0]
            for site, values in zip(sites, ready.pop(coming[0]), strict=True):
                file.parts[site] = file.known(site)[:start] + values
            file.save()

    @staticmethod
    def _waiting(partial: dict[str, float], done: dict[str, int], total: int, lowest: int) -> list[str]:
        """Sites without a complete score that can still be among the `lowest`."""
        incomplete = [site for site in partial if done[site] < total]
        complete = sorted(partial[site] for site in partial if done[site] == total)
        if lowest > len(complete):
            return incomplete
        return [site for site in incomplete if lowest and partial[site] <= complete[lowest - 1]]
