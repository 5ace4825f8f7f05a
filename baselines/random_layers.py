"""Layers drawn at random: the floor of every comparison."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from common.layers import layer_sizes, list_layers, lowest_layers, plan_of_layers, random_scores, removal_budget
from common.plans import Plan


@dataclass
class RandomLayers:
    """A method (see README): removes layers in the order of a seeded draw until `ratio` of the U-Net is gone, in `unit`.

    granularity, width_changing, exclude: which layers (common.layers).
    """

    ratio: float
    unit: str
    granularity: str
    width_changing: str
    exclude: tuple[str, ...]
    seed: int

    def plan(self, unet: nn.Module, calibration: Any, teacher: str, scores: Path | None) -> Plan:
        """The plan for `unet`; the calibration is not used. InputError for a ratio outside (0, 1) or out of reach."""
        layers = list_layers(unet, self.granularity, self.width_changing, self.exclude)
        times = None if scores is None else scores / f"{teacher}-milliseconds.json"
        sizes, whole = layer_sizes(unet, layers, self.unit, times)
        budget = removal_budget(self.ratio, self.unit, sizes, whole)
        found = random_scores(layers, self.seed)
        chosen = lowest_layers([found[layer.site] for layer in layers], sizes, budget)
        settings = asdict(self) | {"ratio_reached": sum(sizes[i] for i in chosen) / whole}
        return plan_of_layers("random_layers", layers, chosen, found, teacher, settings)
