"""LD-Pruner (arXiv 2404.11936): the operators whose removal moves the latents least."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import nn

from common.cost.macs import probe_inputs
from common.errors import InputError, check_one_given
from common.pruning.budget import Budget, bounds_of
from common.pruning.forecast import CalibrationSize, Forecast
from common.pruning.method import Method
from common.pruning.plan import Edit, Plan, edited
from common.runtime.content import content_name
from common.runtime.progress import progress_bar
from common.runtime.seeding import generator_for
from common.scoring.calibration import Calibration
from common.scoring.score_file import ScoreFile
from common.scoring.trajectories import noisy_latents
from common.settings import AtLeastOne, Count, Seed, Share, check_fields
from ld_pruner.algorithm import Formula
from ld_pruner.costs import CostUnit, operator_costs
from ld_pruner.initial_weights import Batch, Initial, initial_weights
from ld_pruner.operators import REPLACEMENTS, Operator, list_operators
from ld_pruner.scoring import LatentScorer
from ld_pruner.selection import Removal, choose, inside


@dataclass
class LDPruner(Method):
    """Removes the operators with the lowest latent scores: Algorithm 1.

    k: how many operators to modify; or else ratio: the share of the U-Net's parameters to remove, at least, by the smallest
    k that does (ld_pruner.selection); or budget: what the student may take (common.pruning.budget). kinds, exclude,
    residual: which operators (ld_pruner.operators); kinds="paper" for all of section 2.2, of which the shipped configuration
    counts the composed ones and samplers. nested: whether an operator inside one that is chosen too uses up one of the k
    ("count", Algorithm 1 read literally) or not ("skip"). initial_weights: ld_pruner.initial_weights, on weight_rows noisy
    latents where it looks at any. formula, squared, correction: ld_pruner.algorithm. scoring, rows: ld_pruner.scoring.
    selection: "oneshot" as the paper, or "iterative": scores are computed again after every `every` removals, on the network
    without them. score_per: what a score is divided by before ranking (ld_pruner.costs).
    """

    knob: ClassVar[str] = "ratio"
    k: Count | None
    ratio: Share | None
    kinds: tuple[str, ...] | Literal["paper"]
    exclude: tuple[str, ...]
    residual: Literal["zero", "identity"]
    nested: Literal["count", "skip"]
    initial_weights: Initial
    formula: Formula
    squared: bool
    correction: Literal[0, 1]
    scoring: Literal["screened", "exact"]
    weight_rows: AtLeastOne
    rows: AtLeastOne
    selection: Literal["oneshot", "iterative"]
    every: AtLeastOne
    score_per: CostUnit
    seed: Seed
    budget: Budget | None = None

    def __post_init__(self) -> None:
        check_fields(self, "method")
        check_one_given(k=self.k, ratio=self.ratio, budget=self.budget)
        if self.budget is not None:
            bounds_of(self)

    def plan(self, unet: nn.Module, calibration: Calibration, teacher: str, scores: Path | None) -> Plan:
        """The plan for `unet`; partial scores are kept below the folder `scores`, by the content they depend on.

        `teacher` names the weights (LatentDiffusion.fingerprint). InputError when k is negative or larger than what is there,
        and when all operators together do not reach the ratio.
        """
        operators, removal = self._operators(unet)
        file = None if scores is None else scores / f"{self._key(calibration, teacher)}.json"
        costs = operator_costs(unet, operators, self.score_per, scores, teacher, calibration.null_condition)
        batch = partial(self._batch, unet, calibration)
        tensors = initial_weights(unet, operators, self.initial_weights, batch, self.seed)
        scorer = LatentScorer(
            unet,
            calibration,
            tensors,
            formula=self.formula,
            squared=self.squared,
            correction=self.correction,
            rows=self.rows,
        )
        select = self._oneshot if self.selection == "oneshot" else self._iterate
        chosen, found, k = select(scorer, operators, costs, file, removal)
        by_site = {operator.site: operator for operator in operators}
        edits = [
            replace(by_site[site].edit, score=found[site])
            for site in sorted(chosen, key=lambda site: (site.count("."), found[site]))
        ]
        kept = {f"{edit.site}.{part}" for edit in edits if edit.operation == "conv1x1" for part in ("weight", "bias")}
        return Plan(
            method="ld_pruner",
            edits=tuple(edits),
            teacher=teacher,
            scores=found,
            settings=asdict(self) | {"k_reached": k, "ratio_reached": removal.share(chosen)},
            tensors={name: value.cpu() for name, value in tensors.items() if name in kept},
        )

    def forecast(self, unet: nn.Module, size: CalibrationSize) -> Forecast:
        """Every operator under every condition, which screening undercuts, and a student without operators drawn at random."""
        operators, removal = self._operators(unet)
        if size.samples <= self.correction:
            raise InputError(f"calibration.samples={size.samples} are too few for method.correction={self.correction}.")
        order = torch.randperm(len(operators), generator=generator_for(self.seed)).tolist()
        ranked = [operators[index].site for index in order]
        k = len(ranked) if self.k is None else self.k
        if self.ratio is not None:
            k = removal.smallest_k(self.ratio, ranked, k, self.nested) or k
        chosen = set(choose(ranked, k, self.nested))
        gone = [operator for operator in operators if operator.site in chosen]
        tensors = initial_weights(unet, gone, "random", partial(probe_inputs, unet), self.seed)
        rounds = 1 if self.selection == "oneshot" else math.ceil(k / self.every)
        note = f"student: {k} operators drawn at random"
        if self.ratio is None:
            ends = [removal.share(sites) for sites in self._extremes(removal, k)]
            note += "; {} of them are from {:.0%} to {:.0%} of the parameters".format(k, *ends)
        return Forecast(
            forward=(rounds * len(operators) + 1) * size.edited_latents,
            batch=self.rows * size.passes(size.guidance_scale),
            plan=Plan(method="ld_pruner", edits=tuple(operator.edit for operator in gone), tensors=tensors),
            note=f"{note}; scoring: every operator under every condition, which screening undercuts",
        )

    def _operators(self, unet: nn.Module) -> tuple[list[Operator], Removal]:
        """Those that may go, and what they save; InputError where there are none, or too few for k or the ratio."""
        operators = list_operators(unet, self.kinds, self.exclude, self.residual)
        if not operators:
            raise InputError(f"method.kinds={self.kinds} and method.exclude leave no operator to remove.")
        removal = Removal.of(unet, operators)
        self._check_reach(operators, removal)
        return operators, removal

    def _extremes(self, removal: Removal, k: int) -> tuple[list[str], list[str]]:
        """The k operators that save the fewest parameters, and k that save many: the largest, none inside another one."""
        ascending = sorted(removal.saved, key=removal.saved.__getitem__)
        return choose(ascending, k, self.nested), choose(ascending[::-1], k, "skip")

    def _check_reach(self, operators: list[Operator], removal: Removal) -> None:
        """InputError when there are fewer than k operators, or when they do not hold the ratio of the parameters."""
        if self.ratio is not None:
            largest = removal.share(removal.saved)
            if self.ratio > largest:
                reachable = math.floor(1e4 * largest) / 1e4
                raise InputError(f"method.ratio={self.ratio}: all operators together save {reachable} of the parameters.")
        if self.k is not None:
            most = len(choose([o.site for o in sorted(operators, key=lambda o: o.site.count("."))], 10**9, self.nested))
            if not 0 <= self.k <= most:
                raise InputError(f"method.k={self.k}: this U-Net has {most} removable operators, so k is from 0 to {most}.")

    def _key(self, calibration: Calibration, teacher: str) -> str:
        """Names what the scores depend on, to the last bit: not k or the ratio, not how they are selected."""
        free = ("k", "ratio", "nested", "scoring", "selection", "every", "score_per")
        settings = {name: value for name, value in asdict(self).items() if name not in free}
        return content_name("ld_pruner", settings, calibration.fingerprint(), teacher, REPLACEMENTS)

    def _batch(self, unet: nn.Module, calibration: Calibration) -> Batch:
        """Arguments of one forward pass on noisy latents, for the least-squares weights."""
        latents, timesteps, conditions = noisy_latents(unet, calibration, self.weight_rows, self.seed)
        return (latents, timesteps), conditions

    def _score(
        self,
        scorer: LatentScorer,
        operators: list[Operator],
        costs: dict[str, float],
        known: ScoreFile,
        k: int,
        removed: Sequence[Edit] = (),
    ) -> dict[str, float]:
        """Complete scores of at least the k lowest operators; `removed` are edits already made."""
        with (
            progress_bar("scoring operators", len(operators) * scorer.calibration.shape[0]) as bar,
            edited(scorer.unet, list(removed), scorer.tensors),
        ):
            lowest = k
            while True:
                found = scorer.score(operators, lowest, self.scoring, known, costs, bar.reach)
                ranked = sorted(found, key=lambda site: found[site] / costs[site])[:lowest]
                missing = k - len(choose(ranked, k, self.nested))
                if missing <= 0 or lowest >= len(operators):
                    return found
                lowest += missing

    def _oneshot(
        self, scorer: LatentScorer, operators: list[Operator], costs: dict[str, float], file: Path | None, removal: Removal
    ) -> tuple[list[str], dict[str, float], int]:
        """Chosen sites, all complete scores, and k.

        Only the k lowest that were asked for are exact: k grows until they reach the ratio, and their smallest choice counts.
        """
        known = ScoreFile.open(file)
        k = len(operators) if self.k is None else self.k
        if self.ratio is not None:
            k = removal.lower_bound(self.ratio)
        while True:
            found = self._score(scorer, operators, costs, known, k)
            ranked = sorted(found, key=lambda site: found[site] / costs[site])
            enough = k if self.ratio is None else removal.smallest_k(self.ratio, ranked, k, self.nested)
            if enough is not None:
                return choose(ranked, enough, self.nested), found, enough
            k = min(len(operators), k + k // 2 + 1)

    def _iterate(
        self, scorer: LatentScorer, operators: list[Operator], costs: dict[str, float], file: Path | None, removal: Removal
    ) -> tuple[list[str], dict[str, float], int]:
        """Chosen sites, the score each had when it was chosen, and k."""
        chosen: list[str] = []
        found: dict[str, float] = {}
        k = 0
        scorer.original_latents()
        while (self.k is not None and len(chosen) < self.k) or (self.ratio is not None and removal.share(chosen) < self.ratio):
            removed = [operator.edit for operator in operators if operator.site in chosen]
            rest = [o for o in operators if o.site not in chosen and not inside(o.site, set(chosen))]
            if not rest:
                raise InputError(
                    f"method.k={self.k}: iterative selection finds {len(chosen)} operators here; k is at most that."
                )
            step = self.every if self.k is None else min(self.every, self.k - len(chosen))
            path = file.with_name(f"{file.stem}-{content_name(sorted(chosen))[:8]}.json") if file and chosen else file
            scores = self._score(scorer, rest, costs, ScoreFile.open(path), step, removed)
            ranked = sorted(scores, key=lambda site: scores[site] / costs[site])
            if self.ratio is not None:
                step = removal.smallest_k(self.ratio, ranked, step, self.nested, chosen) or step
            k = len(chosen) + step
            for site in choose(ranked, step, self.nested):
                chosen.append(site)
                found[site] = scores[site]
        return chosen, found, k
