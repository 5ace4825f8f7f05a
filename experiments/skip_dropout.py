"""Trains a U-Net at first without its skip connections, so that the inner levels learn to carry something."""

from typing import Any

import lightning as L
import torch
from torch import nn

from common.batches import generator_for

DRAW = 6  # sets these numbers apart from others of the same seed


class SkipDropout(L.Callback):
    """In a share of the training samples the skip connections from some level outwards are zero.

    The share falls from `start` in a line to 0 at step `steps`. The level is drawn evenly, the innermost (no skip connection
    is left) included. Each step's draw is seeded by (seed, step). Only training steps see it: the network itself stays stock.
    """

    def __init__(self, unet: nn.Module, start: float, steps: int, seed: int):
        self.unet, self.start, self.steps, self.seed = unet, start, steps, seed
        self.blocks = len(unet.up_blocks)
        self.kept: torch.Tensor | None = None  # (up blocks, batch): 1 where a sample keeps the skips into an up block
        self.handles: list[Any] = []

    def _hook(self, index: int) -> Any:
        def drop(_block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
            if self.kept is None:
                return None
            kept = self.kept[index].view(-1, 1, 1, 1)
            if "res_hidden_states_tuple" in kwargs:  # UNet2DConditionModel; UNet2DModel gives it second
                skips = tuple(skip * kept for skip in kwargs["res_hidden_states_tuple"])
                return args, kwargs | {"res_hidden_states_tuple": skips}
            return (args[0], tuple(skip * kept for skip in args[1]), *args[2:]), kwargs

        return drop

    def draw(self, rows: int, step: int) -> torch.Tensor:
        """The mask (up blocks, rows) of a step."""
        share = self.start * max(0.0, 1 - step / self.steps)
        generator = generator_for(self.seed, DRAW, step)
        first_dropped = torch.randint(self.blocks, (rows,), generator=generator)  # 0: the innermost up block
        dropped = torch.rand(rows, generator=generator) < share
        first_dropped = torch.where(dropped, first_dropped, self.blocks)
        return (torch.arange(self.blocks)[:, None] < first_dropped).float()

    def on_train_start(self, *_: Any) -> None:
        for index, block in enumerate(self.unet.up_blocks):
            self.handles.append(block.register_forward_pre_hook(self._hook(index), with_kwargs=True))

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_index: int) -> None:
        if trainer.global_step < self.steps:
            self.kept = self.draw(len(batch["latents"]), trainer.global_step).to(batch["latents"])

    def on_train_batch_end(self, *_: Any) -> None:
        self.kept = None

    def on_train_end(self, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()
