"""LAPTOP-Diff (arXiv 2404.11098): layers removed by output loss and a knapsack, distilled with normalised features."""

from common.pruning.layers import list_layers
from laptop_diff.feature_loss import normalized_feature_loss
from laptop_diff.knapsack import select_layers

__all__ = ["list_layers", "normalized_feature_loss", "select_layers"]
