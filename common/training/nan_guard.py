"""Stops a training whose loss or weights are no numbers any more, before a checkpoint keeps them."""

from collections.abc import Mapping

import torch
from torch import nn

from common.errors import InputError

ADVICE = "the last checkpoint stays. Lower the learning rate, clip gradients harder, or leave 16-mixed for bf16-mixed."


def check_loss(loss: torch.Tensor, terms: Mapping[str, torch.Tensor], step: int) -> None:
    """InputError naming the term that made `loss` infinite or NaN."""
    if not torch.isfinite(loss):
        broken = next((name for name, value in terms.items() if not torch.isfinite(value)), "total")
        raise InputError(f"The {broken} loss is {terms.get(broken, loss).item()} at step {step}; {ADVICE}")


def check_finite(network: nn.Module, step: int) -> None:
    """InputError naming the first parameter that is not finite."""
    for name, parameter in network.named_parameters():
        if not torch.isfinite(parameter).all():
            raise InputError(f"The weights of {name} are not finite after step {step}; {ADVICE}")
