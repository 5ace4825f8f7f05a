"""Whether figures of result rows differ by more than chance: of samples, and of the seeds of calibration and training.

Rows that are sampled from equal seeds are compared in pairs, by the jackknife replicates of their difference. Rows that differ
in their seed alone are averaged, and tell how much training itself varies: by a share of the figure, pooled over all that were
run with several seeds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.metrics.jackknife import Estimate, mean_of, student_t
from experiments.reporting.lookup import drawn_by_chance, figures_of
from experiments.reporting.rows import but_for_seed
from experiments.shared.row import Row, estimate_of


@dataclass(frozen=True)
class Measured:
    """A figure of one model: its mean over `seeds` rows. trained: whether another seed would have given another model.

    by_chance: whether its layers are drawn, so that another seed removes others.
    """

    estimate: Estimate
    seeds: int = 1
    trained: bool = True
    by_chance: bool = False


def measured(figures: Sequence[Mapping[str, Any]], metric: str, trained: bool = True) -> Measured | None:
    """The metric in figures of rows that differ in their seed alone; None where one of them lacks it."""
    found = [estimate_of(each, metric) for each in figures]
    known = [each for each in found if each is not None and math.isfinite(each.value)]
    if not known or len(known) < len(found):
        return None
    if len({len(each.replicates) for each in known}) > 1:
        known = [Estimate(each.value) for each in known]
    return Measured(mean_of(known), len(known), trained, any(each.get("by_chance") for each in figures))


ENOUGH = 4  # degrees of freedom: with fewer an interval is wider than what it is of


class SeedNoise:
    """How much figures vary between rows that differ in their seed alone."""

    def __init__(self, rows: Sequence[Row], elsewhere: "SeedNoise | None" = None):
        self.elsewhere = elsewhere
        families: dict[str, list[Row]] = {}
        for row in rows:
            families.setdefault(but_for_seed(row), []).append(row)
        self.families = [family for family in families.values() if len({row["settings"]["seed"] for row in family}) > 1]

    def of(self, metric: str, model: str = "student", by_chance: bool = False) -> tuple[float, int]:
        """The standard deviation as a share of the figure, and its degrees of freedom; 0 where nothing is known.

        Rows whose layers are drawn by chance vary by that as well, and tell of each other: those elsewhere too, or all rows,
        where there are too few.
        """
        squares, degrees = 0.0, 0
        for family in self.alike(by_chance) or self.families:
            values = [figures_of(row, {"model": model}).get(metric) for row in family]
            known = [value for value in values if value is not None and math.isfinite(value)]
            mean = math.fsum(known) / max(1, len(known))
            if len(known) > 1 and mean:
                squares += math.fsum((value / mean - 1) ** 2 for value in known)
                degrees += len(known) - 1
        return (math.sqrt(squares / degrees), degrees) if degrees else (0.0, 0)

    def alike(self, by_chance: bool) -> list[list[Row]]:
        """The families whose layers are drawn by chance, or are not; none where they are too few to tell."""
        found = [family for family in self.families if drawn_by_chance(family[0]) == by_chance]
        if sum(len(family) - 1 for family in found) >= ENOUGH:
            return found
        return [] if self.elsewhere is None else self.elsewhere.alike(by_chance)

    def half_width(self, each: Measured, metric: str, model: str = "student") -> float:
        """Of the 95 % interval of a figure as far as seeds of training widen it."""
        share, degrees = self.of(metric, model, each.by_chance) if each.trained else (0.0, 0)
        return student_t(degrees) * share * abs(each.estimate.value) / math.sqrt(each.seeds) if degrees else 0.0


@dataclass(frozen=True)
class Interval:
    """A figure or a difference, and half of its 95 % interval; 0 where no noise is known."""

    value: float
    half: float

    def above(self, bound: float) -> bool:
        """Whether the interval lies above the bound."""
        return self.value - self.half > bound

    def below(self, bound: float) -> bool:
        return self.value + self.half < bound


def interval(each: Measured, metric: str, noise: SeedNoise, model: str = "student") -> Interval:
    """Of one figure."""
    sampled = each.estimate.half_width if each.estimate.replicates else 0.0
    return Interval(each.estimate.value, math.hypot(sampled, noise.half_width(each, metric, model)))


def difference(one: Measured, other: Measured, metric: str, noise: SeedNoise, model: str = "student") -> Interval:
    """Of one minus the other: sampled from equal seeds, trained apart."""
    both = one.estimate.replicates and len(one.estimate.replicates) == len(other.estimate.replicates)
    sampled = (one.estimate - other.estimate).half_width if both else 0.0
    trained = [noise.half_width(each, metric, model) for each in (one, other)]
    return Interval(one.estimate.value - other.estimate.value, math.hypot(sampled, *trained))
