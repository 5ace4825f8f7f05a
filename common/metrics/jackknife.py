"""Confidence intervals of figures of samples, by the delete-a-group jackknife (Shao and Tu 1995, The Jackknife and Bootstrap).

A figure is computed of all samples and again without each of GROUPS groups of them; how much these replicates differ tells how
much it would with other samples. That holds for means and for distances between sets alike. Two models that were sampled from
equal seeds are compared by the replicates of their difference, which leaves out what both owe to the seeds.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import torch

GROUPS = 20
LEVEL = 0.95
Figure: TypeAlias = "Callable[[torch.Tensor], float]"
"""A figure of the samples whose numbers are given."""
Figures: TypeAlias = "Callable[[torch.Tensor], Mapping[str, float]]"
"""Several of them, by name."""


def kept_samples(count: int) -> "list[torch.Tensor]":
    """Numbers of all samples, and for each group of those outside of it: sample i is in group i modulo GROUPS.

    With fewer than 2 x GROUPS samples there are half as many groups as samples, and with fewer than 6 none.
    """
    import torch

    groups = min(GROUPS, count // 2) if count >= 6 else 0
    numbers = torch.arange(count)
    return [numbers, *(numbers[numbers % groups != group] for group in range(groups))]


@dataclass(frozen=True)
class Estimate:
    """A figure of all samples, and its replicates, each without one group of samples; none where there are too few."""

    value: float
    replicates: tuple[float, ...] = ()

    @property
    def standard_error(self) -> float:
        """NaN without replicates."""
        groups = len(self.replicates)
        if not groups:
            return math.nan
        mean = math.fsum(self.replicates) / groups
        return math.sqrt((groups - 1) / groups * math.fsum((value - mean) ** 2 for value in self.replicates))

    @property
    def half_width(self) -> float:
        """Of the interval, by Student's t of one degree of freedom less than groups; NaN without replicates."""
        return student_t(len(self.replicates) - 1) * self.standard_error if self.replicates else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The LEVEL confidence interval (low, high)."""
        return self.value - self.half_width, self.value + self.half_width

    def __sub__(self, other: "Estimate") -> "Estimate":
        """The difference of two figures of samples from equal seeds, in equal groups (ValueError otherwise)."""
        pairs = zip(self.replicates, other.replicates, strict=True)
        return Estimate(self.value - other.value, tuple(a - b for a, b in pairs))


def student_t(degrees: float) -> float:
    """How many standard errors the LEVEL confidence interval extends to each side."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.5 + LEVEL / 2))


def estimate(figures: Figures, count: int) -> dict[str, Estimate]:
    """Each of `figures`, which takes the numbers of the samples to look at, of `count` samples."""
    found = [figures(kept) for kept in kept_samples(count)]
    return {name: Estimate(value, tuple(each[name] for each in found[1:])) for name, value in found[0].items()}


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of figures of samples from equal seeds, such as those of one job's students with several training seeds."""
    columns = zip(*(each.replicates for each in estimates), strict=True)
    return Estimate(
        math.fsum(each.value for each in estimates) / len(estimates),
        tuple(math.fsum(column) / len(estimates) for column in columns),
    )
