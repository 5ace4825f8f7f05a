"""LD-Pruner (arXiv 2404.11936): the k operators whose removal moves the latents least."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from torch import nn

from common.calibration import Calibration
from common.errors import InputError
from common.plans import Edit, Plan, edited
from common.progress import progress_bar
from common.roll_out import noisy_latents
from common.score_file import ScoreFile
from ld_pruner.costs import operator_costs
from ld_pruner.initial_weights import Batch, initial_weights
from ld_pruner.latent_score import FORMULAS
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
        if self.formula not in FORMULAS:
            raise InputError(f"method.formula={self.formula!r} is none of {', '.join(FORMULAS)}.")
        for name in ("every", "screen_rows", "rows"):
            if getattr(self, name) < 1:
                raise InputError(f"method.{name}={getattr(self, name)}: at least 1 is needed.")
        operators = list_operators(unet, self.kinds, self.exclude, self.residual)
        largest = len(choose([o.site for o in sorted(operators, key=lambda o: o.site.count("."))], 10**9, self.nested))
        if not operators:
            raise InputError(f"method.kinds={list(self.kinds)} and method.exclude leave no operator to remove.")
        if not 0 <= self.k <= largest:
            raise InputError(f"method.k={self.k}: this U-Net has {largest} removable operators, so k is from 0 to {largest}.")
        file = None if scores is None else scores / f"{self._key(calibration, teacher)}.json"
        costs = operator_costs(unet, operators, self.score_per, scores, teacher, calibration.empty)
        batch = partial(self._batch, unet, calibration)
        tensors = initial_weights(unet, operators, self.initial_weights, batch, self.seed)
        settings = {"formula": self.formula, "squared": self.squared, "correction": self.correction}
        scorer = LatentScorer(unet, calibration, tensors, **settings, rows=self.rows)
        if self.selection == "oneshot":
            found = self._score(scorer, operators, costs, file, self.k)
            ranked = sorted(found, key=lambda site: found[site] / costs[site])
            chosen = choose(ranked, self.k, self.nested)
        else:
            chosen, found = self._iterate(scorer, operators, costs, file)
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

    def _batch(self, unet: nn.Module, calibration: Calibration) -> Batch:
        """Arguments of one forward pass on noisy latents, for the least-squares weights."""
        latents, timesteps, conditions = noisy_latents(unet, calibration, self.screen_rows, self.seed)
        return (latents, timesteps), conditions

    def _score(
        self,
        scorer: LatentScorer,
        operators: list[Operator],
        costs: dict[str, float],
        file: Path | None,
        k: int,
        removed: Sequence[Edit] = (),
    ) -> dict[str, float]:
        """Complete scores of at least the k lowest operators; `removed` are edits already made."""
        known = ScoreFile.open(file)
        with (
            progress_bar("scoring operators", len(operators) * scorer.calibration.shape[0]) as bar,
            edited(scorer.unet, list(removed), scorer.tensors),
        ):
            lowest = k
            while True:
                found = scorer.score(operators, lowest, self.scoring, known, costs, self.screen_rows, self.seed, bar.reach)
                ranked = sorted(found, key=lambda site: found[site] / costs[site])[:lowest]
                missing = k - len(choose(ranked, k, self.nested))
                if missing <= 0 or lowest >= len(operators):
                    return found
                lowest += missing

    def _iterate(
        self, scorer: LatentScorer, operators: list[Operator], costs: dict[str, float], file: Path | None
    ) -> tuple[list[str], dict[str, float]]:
        """Chosen sites and the score each had when it was chosen."""
        chosen: list[str] = []
        found: dict[str, float] = {}
        scorer.original_latents()
        while len(chosen) < self.k:
            removed = [operator.edit for operator in operators if operator.site in chosen]
            rest = [o for o in operators if o.site not in chosen and not inside(o.site, set(chosen))]
            if not rest:
                raise InputError(
                    f"method.k={self.k}: iterative selection finds {len(chosen)} operators here; k is at most that."
                )
            step = min(self.every, self.k - len(chosen))
            name = hashlib.sha256(json.dumps(sorted(chosen)).encode()).hexdigest()[:8]
            path = file.with_name(f"{file.stem}-{name}.json") if file and chosen else file
            scores = self._score(scorer, rest, costs, path, step, removed)
            for site in choose(sorted(scores, key=lambda site: scores[site] / costs[site]), step, self.nested):
                chosen.append(site)
                found[site] = scores[site]
        return chosen, found
