"""LAPTOP-Diff's criterion and its choice of layers, one layer at a time, as plainly as the paper has them.

Zhang et al.: LAPTOP-Diff (arXiv 2404.11098). Wanted are the layers r_1 ... r_m whose removal changes the output least, while at
least a given size goes:

    minimise  E || eps(r_1, ..., r_m) - eps_ori ||^2    subject to    sum_i size(r_i) >= budget

What the layers do together is replaced by the sum of what each does alone, the output losses E || eps(r_i) - eps_ori ||^2
(the property that the paper calls additivity); what is left is a 0-1 knapsack. `output_losses` is the reference that
laptop_diff/criteria.py is tested and timed against: that one computes the part of the network that removed layers have in
common once, and puts several of them into one forward pass.
"""

from collections.abc import Sequence

import torch
from torch import nn

from common.diffusion.sampling import predict
from common.pruning.layers import Layer
from common.pruning.plan import edited
from common.scoring.noisy_batches import NoisyBatch
from laptop_diff.criteria import guide
from laptop_diff.knapsack import select_layers


@torch.no_grad()
def output_losses(
    unet: nn.Module, layers: Sequence[Layer], batches: Sequence[NoisyBatch], guidance_scale: float = 1.0
) -> dict[str, float]:
    """E || eps(without the layer) - eps ||^2 of every layer by its site, the mean over elements and rows.

    batches: common.scoring.noisy_batches; made with `guided` where guidance_scale is above 1.
    """
    losses = dict.fromkeys((layer.site for layer in layers), 0.0)
    for batch in batches:

        def output(batch: NoisyBatch = batch) -> torch.Tensor:
            predicted = predict(unet, batch.latents, batch.timesteps, batch.conditions)
            return guide(unet, predicted, len(batch.target), guidance_scale)

        original = output()
        for layer in layers:
            with edited(unet, [layer.edit], {}):
                losses[layer.site] += batch.share * (output() - original).square().mean().item()
    return losses


def layers_to_remove(losses: dict[str, float], layers: Sequence[Layer], ratio: float, parameters: int) -> list[str]:
    """The sites of the layers with the least summed loss that hold at least `ratio` of the network's parameters."""
    sizes = [layer.parameters for layer in layers]
    chosen = select_layers([losses[layer.site] for layer in layers], sizes, ratio * parameters)
    return [layers[index].site for index in chosen]
