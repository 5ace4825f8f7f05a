"""Trains a student whose pruned weights stay exactly zero, under an L1 penalty, with gradual pruning and regrowth.

What is done around each optimiser step:

    before   the gradients of pruned weights are set to zero (they would count in the clipped norm), and with
             penalty_step "subgradient" lambda * sign(w) is added to the others
    after    with "proximal" w <- sign(w) max(|w| - lr lambda, 0); pruned weights are set to zero, whatever momentum and
             weight decay made of them; then gradual pruning and regrowth, where they are due
"""

from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from common.errors import InputError
from common.pruning.masks import apply_masks, masked_weight, pack_bits, unpack_bits
from common.pruning.pruning_callback import PruningCallback
from l1_diff.algorithm import penalty_gradient, soft_threshold
from l1_diff.masks import Masks, sparsity_masks
from l1_diff.regrowth import Regrowth, exchange, regrow
from l1_diff.schedule import Ramp

Score = Callable[[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]], dict[str, torch.Tensor]]


class SparseTraining(PruningCallback):
    """Keeps `masks` (l1_diff.masks) on `student` while Lightning trains it; saved and restored with every checkpoint.

    score: (weights, gradients) by site -> importances; uses_gradient: whether it looks at the gradients. They are running
    averages over optimiser steps with `gradient_decay`, kept where something asks for it. ramp: None prunes no further.
    penalty: lambda, on the weights in `masks`.
    """

    def __init__(
        self,
        student: nn.Module,
        masks: Mapping[str, torch.Tensor],
        *,
        score: Score,
        uses_gradient: bool,
        gradient_decay: float,
        scope: str,
        penalty: float,
        penalty_step: str,
        ramp: Ramp | None,
        regrowth: Regrowth,
    ):
        self.weights = {site: masked_weight(student, site, mask) for site, mask in masks.items()}
        self.masks: Masks = dict(masks)
        self.score, self.gradient_decay, self.scope = score, gradient_decay, scope
        self.penalty, self.penalty_step, self.ramp, self.regrowth = penalty, penalty_step, ramp, regrowth
        regrows = regrowth.probability > 0
        scores_again = ramp is not None or (regrows and regrowth.reprune)
        self.keeps_gradients = (uses_gradient and scores_again) or (regrows and regrowth.by == "gradient")
        self.gradients: dict[str, torch.Tensor] = {}
        self.regrown, self.acted = 0, 0  # acted: the last optimiser step that took place
        self.student = student
        self.hook: RemovableHandle | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.set_masks({site: mask.to(self.weights[site].device) for site, mask in self.masks.items()})
        self.gradients = {site: gradient.to(self.weights[site].device) for site, gradient in self.gradients.items()}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.logged = trainer.global_step
        # right after the step itself: neither a skipped step (fp16 overflow), nor the next learning rate, nor an average
        # or a checkpoint made before the masks are applied can come between
        optimizer = trainer.optimizers[0]
        self.hook = optimizer.register_step_post_hook(lambda *_: self.after_step(trainer, optimizer))

    def on_train_end(self, *_: Any) -> None:
        self.remove_hook()

    def on_exception(self, *_: Any) -> None:
        self.remove_hook()

    def remove_hook(self) -> None:
        if self.hook is not None:
            self.hook.remove()
            self.hook = None

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        found = {site: weight.grad for site, weight in self.weights.items() if weight.grad is not None}
        if self.keeps_gradients and all(torch.isfinite(gradient).all() for gradient in found.values()):
            for site, gradient in found.items():
                if site in self.gradients:
                    self.gradients[site].lerp_(gradient.float(), 1 - self.gradient_decay)
                else:
                    self.gradients[site] = gradient.float().clone()
        for site, gradient in found.items():
            gradient.masked_fill_(~self.masks[site], 0)
            if self.penalty and self.penalty_step == "subgradient":
                gradient.add_(penalty_gradient(self.weights[site]), alpha=self.penalty)

    @torch.no_grad()
    def after_step(self, trainer: L.Trainer, optimizer: torch.optim.Optimizer) -> None:
        """Penalty, masks, gradual pruning and regrowth, after an optimiser step that took place."""
        if self.penalty and self.penalty_step == "proximal":
            rates = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
            for weight in self.weights.values():
                shrink = float(rates.get(id(weight), 0.0)) * self.penalty
                weight.copy_(soft_threshold(weight, shrink))
        apply_masks(self.student, self.masks)
        step, steps = trainer.global_step + 1, trainer.max_steps  # Lightning counts the step after this
        if self.ramp is not None and self.ramp.due(step, steps, self.acted):
            scores = {site: score.masked_fill(~self.masks[site], -1) for site, score in self.scores().items()}
            self.set_masks(sparsity_masks(scores, self.ramp.target(step, steps), self.scope))
        if self.regrowth.due(step, steps, self.acted):
            grown = regrow(self.masks, self.regrowth, step, self.all_gradients())
            if self.regrowth.reprune:
                self.set_masks(exchange(self.scores(), self.masks, grown, self.scope))
            else:
                self.set_masks({site: mask | grown[site] for site, mask in self.masks.items()})
            self.forget_moments(optimizer, grown)
            self.regrown += sum(int(flags.sum()) for flags in grown.values())
        self.acted = step

    def all_gradients(self) -> dict[str, torch.Tensor]:
        """The running gradients; zero where a weight has had none."""
        return {site: self.gradients.get(site, torch.zeros_like(w, dtype=torch.float32)) for site, w in self.weights.items()}

    def scores(self) -> dict[str, torch.Tensor]:
        """The importance of every weight, pruned ones too."""
        return self.score(self.weights, self.all_gradients() if self.keeps_gradients else {})

    def set_masks(self, masks: Masks) -> None:
        self.masks = masks
        apply_masks(self.student, masks)
        self.kept = sum(int(mask.sum()) for mask in masks.values())

    def forget_moments(self, optimizer: torch.optim.Optimizer, grown: Masks) -> None:
        """Clears the optimiser's state (momentum, squares) of weights that start again from zero."""
        for site, weight in self.weights.items():
            for value in optimizer.state.get(weight, {}).values():
                if isinstance(value, torch.Tensor) and value.shape == weight.shape:
                    value.masked_fill_(grown[site], 0)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step > self.logged:
            self.logged = trainer.global_step
            pl_module.log_dict({name: float(value) for name, value in self.report().items()})

    def report(self) -> dict[str, float | int]:
        """For the result row: the share of the prunable weights that is masked now, and how many came back on the way."""
        return {"sparsity_reached": 1 - self.kept / sum(mask.numel() for mask in self.masks.values()), "regrown": self.regrown}

    def finish(self, network: nn.Module) -> None:
        """Applies the masks to `network` a last time: averaged weights remember those that were pruned on the way."""
        apply_masks(network, self.masks)

    def state_dict(self) -> dict[str, Any]:
        return {
            "masks": {site: pack_bits(mask) for site, mask in self.masks.items()},
            "gradients": self.gradients,
            "regrown": self.regrown,
            "acted": self.acted,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["masks"].keys() != self.weights.keys():
            raise InputError("The checkpoint's masks are of other layers than the plan's; delete the folder to start anew.")
        self.masks = {site: unpack_bits(packed, self.weights[site].shape) for site, packed in state["masks"].items()}
        self.gradients, self.regrown, self.acted = dict(state["gradients"]), state["regrown"], state["acted"]
