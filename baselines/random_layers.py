"""Layers drawn at random: the floor of every comparison."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from common.pruning.forecast import CalibrationSize, Forecast
from common.pruning.layer_pruner import LayerPruner
from common.pruning.layers import Layer, random_scores
from common.settings import Seed


@dataclass
class RandomLayers(LayerPruner):
    """Removes layers in the order of a draw seeded by `seed`; neither weights nor the calibration are used."""

    name = "random_layers"
    seed: Seed

    def layer_scores(self, unet: nn.Module, layers: Sequence[Layer], *_: Any) -> dict[str, float]:
        return random_scores(layers, self.seed)

    def forecast(self, unet: nn.Module, size: CalibrationSize) -> Forecast:
        """No scores; the very student, unless times are to be measured."""
        if self.unit == "milliseconds":
            return super().forecast(unet, size)
        return Forecast(plan=self.plan(unet, None, "", None), exact=True)
