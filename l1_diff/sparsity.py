"""How sparse a model is, counted in the authors' way and in plain words.

The authors divide zeros by the number of parameters whose name contains "weight": "30 %" per convolution is then 25.07 % of
LDM-4's U-Net. Both numbers are here: `nominal`, of the weights that may be pruned, and `actual`, of all "weights".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from common.errors import InputError
from l1_diff.masks import prunable_weights

PRUNABLE = ("conv", "linear")


@dataclass(frozen=True)
class LayerSparsity:
    """Weights and zeros at one site."""

    site: str
    weights: int
    zeros: int

    @property
    def sparsity(self) -> float:
        return self.zeros / self.weights


@dataclass(frozen=True)
class Sparsity:
    """parameters: all; weights: those whose name contains "weight"; prunable: those of the counted kinds of modules.

    zeros are of `weights`, prunable_zeros of `prunable`; layers: one entry per prunable weight.
    """

    parameters: int
    weights: int
    prunable: int
    zeros: int
    prunable_zeros: int
    layers: tuple[LayerSparsity, ...]

    @property
    def actual(self) -> float:
        """zeros / weights, the authors' accounting."""
        return self.zeros / self.weights

    @property
    def nominal(self) -> float:
        """prunable_zeros / prunable."""
        return self.prunable_zeros / self.prunable


def count_zeros(tensor: torch.Tensor) -> int:
    return tensor.numel() - int(torch.count_nonzero(tensor))


def sparsity(model: nn.Module, modules: Sequence[str] = PRUNABLE) -> Sparsity:
    """The counts of `model`; modules: what counts as prunable (l1_diff.masks.prunable_weights).

    InputError for a model on the meta device, whose zeros cannot be counted.
    """
    named = dict(model.named_parameters())
    if any(parameter.is_meta for parameter in named.values()):
        raise InputError("sparsity: this model is on the meta device and has no values; load its weights first.")
    layers = tuple(
        LayerSparsity(site, weight.numel(), count_zeros(weight)) for site, weight in prunable_weights(model, modules).items()
    )
    weights = [parameter for name, parameter in named.items() if "weight" in name]
    return Sparsity(
        parameters=sum(parameter.numel() for parameter in named.values()),
        weights=sum(weight.numel() for weight in weights),
        prunable=sum(layer.weights for layer in layers),
        zeros=sum(count_zeros(weight) for weight in weights),
        prunable_zeros=sum(layer.zeros for layer in layers),
        layers=layers,
    )
