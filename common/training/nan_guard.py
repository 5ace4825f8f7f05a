"""Stops a training whose loss or weights are no numbers any more, before a checkpoint keeps them."""

from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
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


class GuardedTraining(L.LightningModule):
    """What every training here has: an optimiser and its schedule, a seed, and checkpoints of finite weights."""

    def __init__(
        self,
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Callable[[torch.optim.Optimizer], Any],
        seed: int,
    ):
        super().__init__()
        self.make_optimizer, self.make_schedule, self.seed = optimizer, schedule, seed

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses to save weights that are not finite: the checkpoint before stays."""
        check_finite(self, self.global_step)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = self.make_optimizer([p for p in self.parameters() if p.requires_grad])
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.make_schedule(optimizer), "interval": "step"},
        }
