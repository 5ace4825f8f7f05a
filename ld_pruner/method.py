"""LD-Pruner (arXiv 2404.11936): the k operators whose removal moves the latents least."""

import hashlib
import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from common.calibration import Calibration
from common.errors import InputError
from common.plans import Edit, Plan, edited
from common.progress import progress_bar
from common.score_file import ScoreFile
from ld_pruner.costs import operator_costs
from ld_pruner.initial_weights import initial_weights
from ld_pruner.operators import Operator, list_operators
from ld_pruner.scoring import LatentScorer


def inside(site: str, others: set[str]) -> bool:
    """Whether `site` lies in one of the other sites."""
    return any(site.startswith(f"{other}.") for other in others)


def choose(ranked: list[str], k: int, nested: str) -> list[str]:
    """The first sites of `ranked` until k count: all of them, or under "skip" only those not inside another chosen one."""
    chosen: list[str] = []
    for site in ranked:
        counted = chosen if nested == "count" else [s for s in chosen if not inside(s, set(chosen))]
        if len(counted) >= k:
            break
        if nested == "count" or not inside(site, set(chosen)):
            chosen.append(site)
    return chosen


@dataclass
class LDPruner:
    """A method (see README): reads a teacher's denoiser and a calibration, returns a plan.

    k: how many operators to modify. kinds, exclude, residual: which operators (ld_pruner.operators). nested: whether an
    operator inside one that is chosen too uses up one of the k ("count", Algorithm 1 read literally) or not ("skip").
    initial_weights: ld_pruner.initial_weights. formula, squared, correction: ld_pruner.latent_score. scoring, screen_rows,
    rows: ld_pruner.scoring. selection: "oneshot" as the paper, or "iterative": scores are computed again after
    every `every` removals, on the network without them. score_per: what a score is divided by before ranking
    (ld_pruner.costs).
    """

    k: int
    kinds: tuple[str, ...]
    exclude: tuple[str, ...]
    residual: str
    nested: str
    initial_weights: str
    formula: str
    squared: bool
    correction: int
    scoring: str
    screen_rows: int
    rows: int
    selection: str
    every: int
    score_per: str
    seed: int

    def plan(self, unet: nn.Module, calibration: Calibration, teacher: str, scores: Path | None) -> Plan:
        """The plan for `unet`; partial scores are kept below the folder `scores`, by the content they depend on.

        `teacher` names the weights (Teacher.fingerprint). InputError when k is negative or larger than what is there.
        """
        if self.nested not in ("count", "skip"):
            raise InputError(f"method.nested={self.nested!r} is neither 'count' nor 'skip'.")
        if self.selection not in ("oneshot", "iterative"):
            raise InputError(f"method.selection={self.selection!r} is neither 'oneshot' nor 'iterative'.")
        operators = list_operators(unet, self.kinds, self.exclude, self.residual)
        largest = len(choose([o.site for o in sorted(operators, key=lambda o: o.site.count("."))], 10**9, self.nested))
        if not 0 <= self.k <= largest:
            raise InputError(f"method.k={self.k}: this U-Net has {largest} removable operators, so k is from 0 to {largest}.")
        costs = operator_costs(unet, operators, self.score_per)
        tensors = initial_weights(unet, operators, self.initial_weights, self._batch(calibration), self.seed)
        file = None if scores is None else scores / f"{self._key(calibration, teacher)}.json"
        if self.selection == "oneshot":
            found = self._score(unet, calibration, operators, tensors, costs, file, self.k)
            ranked = sorted(found, key=lambda site: found[site] / costs[site])
            chosen = choose(ranked, self.k, self.nested)
        else:
            chosen, found = self._iterate(unet, calibration, operators, tensors, costs, file)
        by_site = {operator.site: operator for operator in operators}
        edits = [
            Edit(site, by_site[site].edit.operation, by_site[site].edit.sizes, score=found[site])
            for site in sorted(chosen, key=lambda site: (site.count("."), found[site]))
        ]
        kept = {f"{edit.site}.{part}" for edit in edits if edit.operation == "conv1x1" for part in ("weight", "bias")}
        return Plan(
            method="ld_pruner",
            edits=tuple(edits),
            teacher=teacher,
            scores=found,
            settings=asdict(self),
            tensors={name: value.cpu() for name, value in tensors.items() if name in kept},
        )

    def _key(self, calibration: Calibration, teacher: str) -> str:
        """Names what the scores depend on: not k, not how they are selected."""
        free = ("k", "nested", "scoring", "rows", "selection", "every", "score_per", "exclude", "kinds")
        settings = {name: value for name, value in asdict(self).items() if name not in free}
        text = json.dumps([settings, calibration.fingerprint(), teacher], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _batch(self, calibration: Calibration) -> tuple[tuple[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]]:
        """Arguments of one forward pass on the calibration's noise, for the least-squares weights."""
        noise, conditions = calibration.rows(slice(0, 16))
        total = calibration.scheduler.config.num_train_timesteps
        timesteps = (torch.arange(len(noise)) * total // len(noise)).to(noise.device)
        return (noise, timesteps), conditions

    def _score(
        self,
        unet: nn.Module,
        calibration: Calibration,
        operators: list[Operator],
        tensors: dict[str, torch.Tensor],
        costs: dict[str, float],
        file: Path | None,
        k: int,
        removed: list[Edit] | None = None,
    ) -> dict[str, float]:
        """Complete scores of at least the k lowest operators; `removed` are edits already made."""
        with ExitStack() as stack:
            known = ScoreFile.open(file)
            bar = stack.enter_context(progress_bar("scoring operators", len(operators) * calibration.shape[0]))
            settings = {"formula": self.formula, "squared": self.squared, "correction": self.correction}
            scorer = LatentScorer(unet, calibration, tensors, **settings, rows=self.rows, advance=bar.advance)
            if removed:
                scorer.original_latents()
                stack.enter_context(edited(unet, removed, tensors))
            lowest = k
            while True:
                found = scorer.score(operators, lowest, self.scoring, known, costs, self.screen_rows, self.seed)
                ranked = sorted(found, key=lambda site: found[site] / costs[site])[:lowest]
                missing = k - len(choose(ranked, k, self.nested))
                if missing <= 0 or lowest >= len(operators):
                    return found
                lowest += missing

    def _iterate(
        self,
        unet: nn.Module,
        calibration: Calibration,
        operators: list[Operator],
        tensors: dict[str, torch.Tensor],
        costs: dict[str, float],
        file: Path | None,
    ) -> tuple[list[str], dict[str, float]]:
        """Chosen sites and the score each had when it was chosen."""
        chosen: list[str] = []
        found: dict[str, float] = {}
        while len(chosen) < self.k:
            removed = [operator.edit for operator in operators if operator.site in chosen]
            rest = [o for o in operators if o.site not in chosen and not inside(o.site, set(chosen))]
            if not rest:
                raise InputError(f"method.k={self.k}: iterative selection ran out of operators after {len(chosen)}.")
            step = min(self.every, self.k - len(chosen))
            name = hashlib.sha256(json.dumps(sorted(chosen)).encode()).hexdigest()[:8]
            path = file.with_name(f"{file.stem}-{name}.json") if file and chosen else file
            scores = self._score(unet, calibration, rest, tensors, costs, path, step, removed)
            for site in choose(sorted(scores, key=lambda site: scores[site] / costs[site]), step, self.nested):
                chosen.append(site)
                found[site] = scores[site]
        return chosen, found
