"""Pruned weights that come back: L1-Diff's "small random regrowth", of which the README gives no probability.

Decisions depend on (seed, step, site) alone, so that a resumed run and every device decide alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args
from zlib import crc32

import torch

from common.runtime.seeding import generator_for
from common.runtime.threads import in_threads
from l1_diff.algorithm import regrown
from l1_diff.masks import Masks, lowest, lowest_everywhere

RegrowBy = Literal["chance", "gradient"]
CHOICES = get_args(RegrowBy)


@dataclass(frozen=True)
class Regrowth:
    """Every `every` optimiser steps each pruned weight comes back with `probability`.

    by: "chance" draws each weight; "gradient" takes the same share of each layer's pruned weights, those of largest gradient
    (as RigL, arXiv 1911.11134). reprune: as many active weights of least importance are pruned in exchange.
    """

    probability: float
    by: RegrowBy
    every: int
    reprune: bool
    seed: int

    def due(self, step: int, steps: int, acted: int) -> bool:
        """Whether step `step` (from 1) of `steps` regrows: where a step after `acted`, the last one that did, was meant to.

        Never the last step: what came back there would stay zero.
        """
        return self.probability > 0 and step < steps and step // self.every > acted // self.every


def regrow(masks: Masks, regrowth: Regrowth, step: int, gradients: Mapping[str, torch.Tensor]) -> Masks:
    """True where a pruned weight comes back at optimiser step `step`.

    gradients: dL/dw by site, of pruned weights too; read for by="gradient" alone.
    """
    if regrowth.by == "chance":
        return dict(in_threads(partial(drawn_by_chance, regrowth, step), masks.items(), None))
    grown = {}
    for site, mask in masks.items():
        wanted = round(regrowth.probability * int((~mask).sum()))
        size = gradients[site].abs().masked_fill(mask, -torch.inf)
        grown[site] = lowest(-size, wanted)
    return grown


def drawn_by_chance(regrowth: Regrowth, step: int, entry: tuple[str, torch.Tensor]) -> tuple[str, torch.Tensor]:
    """Site, and where its pruned weights come back, of (site, mask); from a generator of its own."""
    site, mask = entry
    generator = generator_for(regrowth.seed, step, crc32(site.encode()))
    return site, regrown(mask, regrowth.probability, generator)


def exchange(scores: Mapping[str, torch.Tensor], masks: Masks, grown: Masks, scope: str) -> Masks:
    """The masks with `grown` put in, and as many of the active weights with the lowest scores taken out.

    scope: counted in each layer, or over all ("global"). Where fewer weights are active than grown, all of them go.
    """
    free = {site: scores[site].masked_fill(~masks[site], torch.inf) for site in masks}
    wanted = {site: int(flags.sum()) for site, flags in grown.items()}
    active = {site: int(mask.sum()) for site, mask in masks.items()}
    if scope == "layer":
        removed = {site: lowest(free[site], min(wanted[site], active[site])) for site in masks}
    else:
        removed = lowest_everywhere(free, min(sum(wanted.values()), sum(active.values())))
    return {site: (masks[site] & ~removed[site]) | grown[site] for site in masks}
