"""Which of the ranked operators go: the k lowest, or as many as a wanted share of the parameters takes."""

from bisect import bisect_left
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate

from torch import nn

from common.cost.macs import count_parameters
from ld_pruner.operators import Operator


def inside(site: str, others: set[str]) -> bool:
    """Whether `site` lies in one of the other sites."""
    names = site.split(".")
    return any(".".join(names[:depth]) in others for depth in range(1, len(names)))


def choose(ranked: Sequence[str], k: int, nested: str) -> list[str]:
    """The first sites of `ranked` until k count: all of them, or under "skip" only those not inside another chosen one."""
    chosen: list[str] = []
    for site in ranked:
        sites = set(chosen)
        counted = chosen if nested == "count" else [s for s in chosen if not inside(s, sites)]
        if len(counted) >= k:
            break
        if nested == "count" or not inside(site, sites):
            chosen.append(site)
    return chosen


@dataclass(frozen=True)
class Removal:
    """What edits remove of a U-Net: `saved` parameters by site, those of new 1x1 convolutions staying, out of `whole`."""

    saved: dict[str, int]
    whole: int

    @classmethod
    def of(cls, unet: nn.Module, operators: Sequence[Operator]) -> "Removal":
        return cls({operator.site: operator.parameters_saved for operator in operators}, count_parameters(unet))

    def share(self, sites: Collection[str]) -> float:
        """The share of the parameters that edits at `sites` remove; a site inside another one is gone with that one."""
        gone = set(sites)
        return sum(self.saved[site] for site in gone if not inside(site, gone)) / self.whole

    def lower_bound(self, ratio: float) -> int:
        """A k below which no choice removes `ratio`: what the largest operators save together, counted without nesting."""
        sums = accumulate(sorted(self.saved.values(), reverse=True))
        return next((k for k, removed in enumerate(sums, 1) if removed / self.whole >= ratio), len(self.saved))

    def smallest_k(self, ratio: float, ranked: Sequence[str], most: int, nested: str, before: Sequence[str] = ()) -> int | None:
        """The smallest k up to `most` whose choice from `ranked`, with the sites `before`, removes `ratio`; None: none does.

        Each choice holds the one of a smaller k, so the share never falls and bisection finds the smallest.
        """
        k = bisect_left(range(most + 1), True, key=lambda k: self.share({*before, *choose(ranked, k, nested)}) >= ratio)
        return k if k <= most else None
