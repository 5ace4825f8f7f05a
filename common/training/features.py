"""Outputs of inner modules, and how a student's are compared with the teacher's."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from common.denoisers.denoiser import architecture_of

IMAGE = "hidden_states"  # the stream of the image, by the name that diffusers' blocks give it
Features = Sequence[torch.Tensor]


def squared_feature_losses(student: Features, teacher: Features) -> list[torch.Tensor]:
    """Mean squared error in float32 per feature pair, summed over pairs by the caller (BK-SDM's code)."""
    return [F.mse_loss(s.float(), t.float()) for s, t in zip(student, teacher, strict=True)]


class FeatureHooks:
    """Keeps the last output of the modules at `paths`, by forward hooks on the unwrapped network.

    Of a transformer's block that gives two streams, image and text, it is that of the image.
    """

    def __init__(self, network: nn.Module, paths: Sequence[str]):
        blocks = architecture_of(network).blocks(network)
        self.streams = {site: block.streams.index(IMAGE) for site, block in blocks if IMAGE in block.streams}
        self.outputs: dict[str, torch.Tensor] = {}
        self.paths = list(paths)
        self.handles = [network.get_submodule(path).register_forward_hook(self._keep(path)) for path in set(paths)]

    def _keep(self, path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self.outputs[path] = output[self.streams.get(path, 0)] if isinstance(output, tuple) else output

        return hook

    def features(self) -> list[torch.Tensor]:
        """The outputs of the last forward pass, in the order of `paths`."""
        return [self.outputs[path] for path in self.paths]

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()
