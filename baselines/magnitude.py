"""The layers with the smallest weights: the least one can know about a layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from common.pruning.layer_pruner import LayerPruner
from common.pruning.layers import Layer, mean_magnitude


@dataclass
class Magnitude(LayerPruner):
    """Removes layers in the order of their mean absolute weight; the calibration is not used."""

    name = "magnitude"

    def layer_scores(self, unet: nn.Module, layers: Sequence[Layer], *_: Any) -> dict[str, float]:
        return {layer.site: mean_magnitude(unet.get_submodule(layer.site)) for layer in layers}
