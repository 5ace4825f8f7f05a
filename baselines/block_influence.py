"""The blocks that turn what passes them least: block influence, by the cosine of what goes in and what comes out.

Men et al., ShortGPT (arXiv 2403.03853), of language models; Xie et al., SANA-1.5 (2501.18427), of diffusion transformers. PPCL
compares blocks that lie beside each other (contiguous intervals) with those of least influence wherever they are.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from common.diffusion.sampling import predict
from common.errors import InputError
from common.pruning.forecast import CalibrationSize, Forecast
from common.pruning.layer_pruner import LayerPruner
from common.pruning.layers import Layer
from common.pruning.plan import load_replacement
from common.runtime.progress import progress_bar
from common.scoring.calibration import Calibration
from common.scoring.noisy_batches import Timesteps, noisy_batches
from common.settings import AtLeastOne, Seed

IMAGE, TEXT = "hidden_states", "encoder_hidden_states"


def least_interval(scores: Sequence[float], sizes: Sequence[float], budget: float) -> list[int]:
    """Indices of layers beside each other whose sizes sum to `budget` at least and whose scores sum to the least."""
    best, least = list(range(len(scores))), math.inf
    for first in range(len(scores)):
        removed, end = 0.0, first
        while removed < budget and end < len(scores):
            removed += sizes[end]
            end += 1
        if removed >= budget and (summed := math.fsum(scores[first:end])) < least:
            best, least = list(range(first, end)), summed
    return best


def influence(changed: torch.Tensor, passed: torch.Tensor) -> float:
    """1 - E cos between tokens (batch, tokens, width), or places (batch, channels, height, width), of two tensors."""
    return 1 - F.cosine_similarity(changed.float(), passed.float(), dim=1 if changed.dim() == 4 else -1).mean().item()


@contextmanager
def influences(network: nn.Module, layers: Sequence[Layer]) -> Iterator[dict[tuple[str, str], float]]:
    """The influence of each layer on each stream it changes, by (site, stream), of the forward pass made within."""
    found: dict[tuple[str, str], float] = {}

    def watch(layer: Layer) -> Any:
        module = network.get_submodule(layer.site)
        passed_by = load_replacement(module, layer.edit, {})
        streams = layer.edit.sizes.get("returns", [IMAGE])

        def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            passed = passed_by(*args, **kwargs)
            pairs = zip(*(each if isinstance(each, tuple) else (each,) for each in (output, passed)), strict=False)
            for stream, (changed, kept) in zip(streams, pairs, strict=False):
                if changed is not None and kept is not None:
                    found[layer.site, stream] = influence(changed, kept)

        return module.register_forward_hook(hook, with_kwargs=True)

    handles = [watch(layer) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class BlockInfluence(LayerPruner):
    """Removes whole layers in the order of their influence: 1 - E cos(output, what passes where the layer is removed).

    Expectations run over noisy latents of the training data. stream: of blocks that change image and text, which of them tells:
    "image", "text" or their "mean"; the plan's scores hold each ("<site> encoder_hidden_states"). arrangement: "scattered", the
    layers of least influence, or "contiguous", the neighbours whose influences sum to the least.
    """

    name = "block_influence"
    stream: Literal["image", "text", "mean"]
    arrangement: Literal["scattered", "contiguous"]
    timesteps: Timesteps
    batch_size: AtLeastOne
    seed: Seed

    def select(self, scores: Sequence[float], sizes: Sequence[float], budget: float) -> list[int]:
        return (
            least_interval(scores, sizes, budget) if self.arrangement == "contiguous" else super().select(scores, sizes, budget)
        )

    def layer_scores(
        self, unet: nn.Module, layers: Sequence[Layer], calibration: Calibration, teacher: str, folder: Path | None
    ) -> dict[str, float]:
        """By site what `stream` tells, and of layers with several streams each of them by "<site> <stream>"."""
        halves = [layer.site for layer in layers if layer.edit.operation == "zero"]
        if halves:
            raise InputError(
                f"method.granularity={self.granularity}: block influence is of whole layers, which pass their input on; "
                f"{halves[0]} is a part to which its block adds the input. Take transformer or transformer_block."
            )
        sums: dict[tuple[str, str], float] = {}
        batches = noisy_batches(calibration, self.timesteps, self.batch_size, guided=False, seed=self.seed)
        with progress_bar("scoring layers", len(batches)) as bar:
            for batch in batches:
                with influences(unet, layers) as found:
                    predict(unet, batch.latents, batch.timesteps, batch.conditions)
                for name, value in found.items():
                    sums[name] = sums.get(name, 0.0) + batch.share * value
                bar.advance()
        told = {layer.site: {stream: value for (site, stream), value in sums.items() if site == layer.site} for layer in layers}
        each = {f"{site} {stream}": value for site, known in told.items() if len(known) > 1 for stream, value in known.items()}
        return {site: self.told_by(known) for site, known in told.items()} | each

    def told_by(self, streams: dict[str, float]) -> float:
        """The influence on the stream that is asked for; on the only one of layers that have one."""
        if self.stream == "mean" or len(streams) == 1:
            return math.fsum(streams.values()) / len(streams)
        return streams[TEXT if self.stream == "text" else IMAGE]

    def forecast(self, unet: nn.Module, size: CalibrationSize) -> Forecast:
        """As for any method that removes layers, and a forward pass of each row."""
        return replace(super().forecast(unet, size), forward=size.rows, batch=min(self.batch_size, size.rows))
