"""What removing one layer costs: the criteria that LAPTOP-Diff (arXiv 2404.11098) compares, and two floors.

    output     E || eps(without layer i) - eps ||^2, the paper's output loss
    task       E || target - eps(without layer i) ||^2 - E || target - eps ||^2, the change of the training loss
    alignment  how much an alignment score of samples drops (text and image; calibration.alignment)
    magnitude  mean absolute weight of the layer: small weights, cheap to remove
    random     a seeded uniform number

Expectations run over latents of training images, timesteps and conditions. What all layers have in common, the network up
to the first changed block, is computed once per batch; several layers share one forward pass (common/scoring/edited_copies.py),
and several processes share the passes out.
"""

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import nn

from common.denoisers.denoiser import architecture_of
from common.errors import InputError
from common.pruning.layers import Layer, mean_magnitude, random_scores
from common.pruning.plan import Edit
from common.runtime.collectives import shared_out
from common.scoring.calibration import Calibration
from common.scoring.edited_copies import edited_outputs
from common.scoring.noisy_batches import NoisyBatch, noisy_batches
from common.scoring.score_file import ScoreFile
from common.scoring.trajectories import edited_latents

Criterion = Literal["output", "task", "alignment", "magnitude", "random"]
CRITERIA = get_args(Criterion)


def guide(unet: nn.Module, output: torch.Tensor, rows: int, guidance_scale: float) -> torch.Tensor:
    """Classifier-free guidance, as the network's, where `output` holds the rows twice; as it is otherwise."""
    if len(output) == rows:
        return output
    without, conditioned = output.chunk(2)
    return architecture_of(unet).guided(without, conditioned, guidance_scale)


def layer_losses(
    unet: nn.Module,
    layers: Sequence[Layer],
    calibration: Calibration,
    file: ScoreFile,
    *,
    criterion: str = "output",
    timesteps: str = "even",
    guidance_scale: float = 1.0,
    batch_size: int = 32,
    copies: int = 8,
    seed: int = 0,
    report: Callable[[int], None] = lambda finished: None,
) -> dict[str, float]:
    """The loss of each layer by its site; `file` holds what is known already and grows with every batch.

    batch_size: rows of the calibration data in one batch; copies: layers that share a forward pass. `report` is told how many
    layers' worth of work is finished.
    """
    if criterion not in CRITERIA:
        raise InputError(f"method.criterion={criterion!r} is none of {', '.join(CRITERIA)}.")
    if criterion in ("magnitude", "random"):
        report(len(layers))
        if criterion == "random":
            return random_scores(layers, seed)
        return {layer.site: mean_magnitude(unet.get_submodule(layer.site)) for layer in layers}
    if criterion == "alignment":
        parts = [
            lambda waiting, chosen=chosen: _alignment_drops(unet, waiting, calibration, chosen, copies)
            for chosen in condition_chunks(calibration, batch_size)
        ]
    else:
        batches = noisy_batches(calibration, timesteps, batch_size, guidance_scale > 1, seed)
        parts = [
            lambda waiting, batch=batch: _batch_losses(unet, waiting, batch, criterion == "task", guidance_scale, copies)
            for batch in batches
        ]
    for index, compute in enumerate(parts):
        waiting = [layer for layer in layers if len(file.known(layer.site)) <= index]
        if waiting:
            found = compute(waiting)
            for layer in waiting:
                file.parts[layer.site] = [*file.known(layer.site)[:index], found[layer.site]]
            file.save()
        report(len(layers) * (index + 1) // len(parts))
    return {layer.site: sum(file.known(layer.site)[: len(parts)]) for layer in layers}


def batch_loss(
    unet: nn.Module, batch: NoisyBatch, intact: torch.Tensor, changed: torch.Tensor, task: bool, guidance_scale: float
) -> float:
    """This batch's share of the output loss, or of the change of the task loss, between two outputs (batch, ...) of `unet`."""
    rows = len(batch.target)
    intact, changed = (guide(unet, output.float(), rows, guidance_scale) for output in (intact, changed))
    if task:
        loss = (changed - batch.target).square().mean() - (intact - batch.target).square().mean()
    else:
        loss = (changed - intact).square().mean()
    return batch.share * loss.item()


def _batch_losses(
    unet: nn.Module, layers: Sequence[Layer], batch: NoisyBatch, task: bool, guidance_scale: float, copies: int
) -> dict[str, float]:
    """This batch's share of the loss of each layer."""

    def loss(intact: torch.Tensor, changed: torch.Tensor) -> float:
        return batch_loss(unet, batch, intact, changed, task, guidance_scale)

    inputs = (batch.latents, batch.timesteps)
    return edited_outputs(unet, [layer.edit for layer in layers], {}, inputs, batch.conditions, copies, loss)


def condition_chunks(calibration: Calibration, batch_size: int) -> list[slice]:
    """The conditions in chunks of `batch_size` samples each, one condition at least."""
    count, samples = calibration.shape
    size = max(1, batch_size // samples)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def alignment_of(unet: nn.Module, calibration: Calibration, chosen: slice, edits: Sequence[Edit] = ()) -> list[float]:
    """The chosen conditions' share of the alignment of samples, of one copy of `unet` per edit (of `unet` itself without).

    InputError where the task has no captions to align with.
    """
    if calibration.alignment is None:
        raise InputError("method.criterion=alignment needs captions that name what is drawn; this data has none.")
    share = (chosen.stop - chosen.start) / calibration.shape[0]
    return [share * calibration.alignment(latents, chosen) for latents in edited_latents(unet, calibration, chosen, edits)]


def _alignment_drops(
    unet: nn.Module, layers: Sequence[Layer], calibration: Calibration, chosen: slice, copies: int
) -> dict[str, float]:
    """The chosen conditions' share of the intact network's alignment minus that of each network without a layer."""
    (intact,) = alignment_of(unet, calibration, chosen)

    def drops(first: int) -> dict[str, float]:
        group = layers[first : first + copies]
        found = alignment_of(unet, calibration, chosen, [layer.edit for layer in group])
        return {layer.site: intact - aligned for layer, aligned in zip(group, found, strict=True)}

    parts = shared_out(range(0, len(layers), copies), drops)
    return {site: drop for part in parts for site, drop in part.items()}
