"""Whether figures of result rows differ by more than chance: of samples, and of the seeds of calibration and training.

Rows that are sampled from equal seeds are compared in pairs, by the jackknife replicates of their difference. Rows that differ
in their seed alone are averaged, and tell how much calibration and training themselves vary: a standard deviation, pooled over
all of a task that were run with several seeds.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.metrics.jackknife import Estimate, mean_of, student_t
from experiments.reporting.lookup import figures_of, varies_as
from experiments.reporting.rows import but_for_seed
from experiments.shared.row import Row, estimate_of


@dataclass(frozen=True)
class Measured:
    """A figure of one model: its mean over `seeds` rows.

    model: "pruned" or "distilled"; None of a teacher, which other seeds leave as it is. varies_as: what it has in common with
    figures that seeds change as much (experiments.reporting.lookup).
    """

    estimate: Estimate
    seeds: int = 1
    model: str | None = None
    varies_as: str = ""


def measured(figures: Sequence[Mapping[str, Any]], metric: str) -> Measured | None:
    """The metric in figures of rows that differ in their seed alone; None where one of them lacks it."""
    found = [estimate_of(each, metric) for each in figures]
    known = [each for each in found if each is not None and math.isfinite(each.value)]
    if not known or len(known) < len(found):
        return None
    if len({len(each.replicates) for each in known}) > 1:
        known = [Estimate(each.value) for each in known]
    model = figures[0].get("model")
    return Measured(mean_of(known), len(known), None if model == "teacher" else model, figures[0].get("varies_as", ""))


ENOUGH = 2  # degrees of freedom: with one an interval is wider than what it is of


class SeedNoise:
    """How much figures vary between rows of one task that differ in their seed alone.

    By as much whatever their size, as measured: a student that is near its teacher varies as one that is far. Where `rows` are
    too few to tell, those of `elsewhere` do.
    """

    def __init__(self, rows: Sequence[Row], elsewhere: "SeedNoise | None" = None):
        self.elsewhere = elsewhere
        families: dict[str, list[Row]] = {}
        for row in rows:
            families.setdefault(but_for_seed(row), []).append(row)
        self.families = [family for family in families.values() if len({row["settings"]["seed"] for row in family}) > 1]

    def of(self, metric: str, model: str = "distilled", varies_as: str = "chosen") -> tuple[float, int]:
        """The standard deviation, and its degrees of freedom; zeros where nothing is known.

        Pooled over the figures of one model of each row, before its training ("pruned") or after ("distilled"), that vary
        alike; over those of all rows where there are too few.
        """
        alike = [values for values, kind in self.values(metric, model) if kind == varies_as]
        if degrees_of(alike) < ENOUGH and self.elsewhere is not None:
            return self.elsewhere.of(metric, model, varies_as)
        if degrees_of(alike) < ENOUGH:
            alike = [values for values, _ in self.values(metric, model)]
        degrees = degrees_of(alike)
        squares = math.fsum(statistics.variance(values) * (len(values) - 1) for values in alike)
        return (math.sqrt(squares / degrees), degrees) if degrees else (0.0, 0)

    def values(self, metric: str, model: str) -> Iterator[tuple[list[float], str]]:
        """Of each family that has several, and as what they vary."""
        for family in self.families:
            found = [figures_of(row, {"model": model}).get(metric) for row in family if model in row["models"]]
            known = [value for value in found if value is not None and math.isfinite(value)]
            if len(known) > 1:
                yield known, varies_as(family[0], model)

    def half_width(self, each: Measured, metric: str) -> float:
        """Of the 95 % interval of a figure as far as seeds widen it."""
        deviation, degrees = self.of(metric, each.model, each.varies_as) if each.model else (0.0, 0)
        return student_t(degrees) * deviation / math.sqrt(each.seeds) if degrees else 0.0


def degrees_of(families: Sequence[Sequence[float]]) -> int:
    """Of freedom, of a standard deviation that is pooled over families."""
    return sum(len(values) - 1 for values in families)


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

    def within(self, bound: float) -> bool:
        """Whether it lies between -bound and bound."""
        return abs(self.value) + self.half < bound


def interval(each: Measured, metric: str, noise: SeedNoise) -> Interval:
    """Of one figure."""
    sampled = each.estimate.half_width if each.estimate.replicates else 0.0
    return Interval(each.estimate.value, math.hypot(sampled, noise.half_width(each, metric)))


def difference(one: Measured, other: Measured, metric: str, noise: SeedNoise) -> Interval:
    """Of one minus the other: sampled from equal seeds, trained apart."""
    both = one.estimate.replicates and len(one.estimate.replicates) == len(other.estimate.replicates)
    sampled = (one.estimate - other.estimate).half_width if both else 0.0
    trained = [noise.half_width(each, metric) for each in (one, other)]
    return Interval(one.estimate.value - other.estimate.value, math.hypot(sampled, *trained))
