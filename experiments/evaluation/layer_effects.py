"""What each layer of a denoiser does: how much its output changes when that layer alone is removed."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from common.cost.macs import count_parameters
from common.data.lazy_images import subset
from common.data.teacher_samples import latents_of
from common.denoisers.unet import guidance_size
from common.diffusion.noise_schedule import learns_from_noise
from common.diffusion.sampling import predict
from common.pruning.layers import Layer, list_layers
from common.runtime.collectives import on_first
from common.runtime.content import content_name
from common.runtime.files import write_json
from common.runtime.strict_json import read_json
from common.scoring.calibration import Calibration
from common.scoring.edited_copies import edited_outputs
from common.scoring.noisy_batches import noisy_batches
from experiments.shared.job import Job

DEAD, FAINT = 1e-4, 1e-3
MANY_DEAD = 0.1  # of the parameters: from this share on a job tells
BATCH_SIZE, COPIES = 32, 8  # rows, and edits of them, in one forward pass
TOLD: set[str] = set()  # lines
ROWS = 128  # images with noise on them: a layer's figure is then good to about a tenth of itself


@torch.no_grad()
def what_layers_do(denoiser: Any, scheduler: Any, latents: torch.Tensor, conditions: dict[str, Any]) -> dict[str, float]:
    """The relative output loss of each layer removed alone, by its site, in the order of common.pruning.layers.list_layers.

    latents: (rows, channels, height, width) of training images; conditions: their conditions row by row, {} without text;
    both on any device.
    """
    latents = latents.to(denoiser.device)
    conditions = {name: value.to(denoiser.device) for name, value in conditions.items()}
    calibration = Calibration(latents[:1], {}, {}, scheduler, steps=1, guidance_scale=1.0, data=lambda: (latents, conditions))
    edits = [layer.edit for layer in list_layers(denoiser)]
    losses, power = dict.fromkeys((edit.site for edit in edits), 0.0), 0.0

    def difference(intact: torch.Tensor, changed: torch.Tensor) -> float:
        return (changed - intact).square().mean().item()

    for batch in noisy_batches(calibration, "even", BATCH_SIZE, guided=False, seed=0):
        inputs = (batch.latents, batch.timesteps)
        power += batch.share * predict(denoiser, *inputs, batch.conditions).square().mean().item()
        found = edited_outputs(denoiser, edits, {}, inputs, batch.conditions, COPIES, difference)
        for site, loss in found.items():
            losses[site] += batch.share * loss
    return {site: loss / power for site, loss in losses.items()}


def layers_of(teacher: Any, data: Any, rows: int = ROWS) -> dict[str, float]:
    """what_layers_do of a teacher's denoiser on evenly spaced training images."""
    chosen = [index * len(data) // rows for index in range(rows)] if rows < len(data) else list(range(len(data)))
    captions = [data.captions[index] for index in chosen] if teacher.text_encoder is not None else []
    latents = latents_of(teacher, subset(data.images, chosen))
    return what_layers_do(teacher.denoiser, teacher.scheduler, latents, teacher.encode_captions(captions) if captions else {})


def tell_dead_layers(job: Job) -> None:
    """Tells on standard error, once a process, when much of the job's teacher does nothing: that decides no comparison.

    Looks at layer_check.rows training images, once for all jobs of these outputs. Not done for latent consistency models,
    whose loss is not of noise on images.
    """
    rows = job.settings.layer_check.rows
    teacher = job.teacher
    if not rows or not learns_from_noise(teacher.scheduler, guidance_size(teacher.denoiser) is not None):
        return
    path = job.cache / f"layers-{content_name(teacher.fingerprint(), job.data_identity, rows)}.json"
    if not on_first(path.is_file):
        losses = layers_of(teacher, job.data("train"), rows)  # processes share it out
        on_first(lambda: write_json(path, losses))
    told = on_first(lambda: dead_layers_line(job, path))
    if told and told not in TOLD:
        TOLD.add(told)
        on_first(lambda: print(told, file=sys.stderr))


def dead_layers_line(job: Job, path: Path) -> str:
    """The line of tell_dead_layers by the losses at `path`; "" for a teacher whose layers do something."""
    denoiser = job.teacher.denoiser
    layers = list_layers(denoiser)
    losses = read_json(path, "delete it and the layers are looked at anew", [layer.site for layer in layers])
    dead = share_below(layers, losses, DEAD, count_parameters(denoiser))
    if dead <= MANY_DEAD:
        return ""
    settings = job.settings
    command = shlex.join(["task=" + settings.task.name, f"teacher.path={settings.teacher.path}"])
    return (
        f"{dead:.0%} of the teacher's parameters do nothing: removing one of their layers changes the output by less than "
        f"{DEAD:.0e} of its power, so that comparisons on it decide little. Which: python -m experiments.layer_report {command}"
    )


def share_below(layers: Sequence[Layer], losses: dict[str, float], threshold: float, total: int) -> float:
    """The share of a denoiser's `total` parameters that lies in layers whose loss is below `threshold`."""
    return sum(layer.parameters for layer in layers if losses[layer.site] < threshold) / total


def level(site: str) -> str:
    """The block of a U-Net in which a layer lies: "down_blocks.0", "mid_block", ..."""
    parts = site.split(".")
    return parts[0] if parts[0] == "mid_block" else ".".join(parts[:2])


def summary(denoiser: Any, losses: dict[str, float]) -> str:
    """One line: the shares of dead and faint layers, and the largest loss of each level."""
    layers, total = list_layers(denoiser), count_parameters(denoiser)
    largest: dict[str, float] = {}
    for site, loss in losses.items():
        largest[level(site)] = max(loss, largest.get(level(site), 0.0))
    told = ", ".join(f"{name.replace('_blocks.', ' ').removesuffix('_block')} {value:.0e}" for name, value in largest.items())
    shares = [share_below(layers, losses, threshold, total) for threshold in (DEAD, FAINT)]
    return f"{shares[0]:.0%} below {DEAD:.0e}, {shares[1]:.0%} below {FAINT:.0e}; {told}"


def report(denoiser: Any, losses: dict[str, float]) -> str:
    """The table in Markdown, a row for each level, and what it says of the whole."""
    layers, total = list_layers(denoiser), count_parameters(denoiser)
    lines = ["| level | parameters | each layer removed alone |", "|---|---|---|"]
    for name in dict.fromkeys(level(layer.site) for layer in layers):
        own = [layer for layer in layers if level(layer.site) == name]
        told = ", ".join(f"{layer.site.removeprefix(name + '.')} {losses[layer.site]:.1e}" for layer in own)
        lines.append(f"| {name} | {sum(layer.parameters for layer in own) / total:.1%} | {told} |")
    for threshold in (DEAD, FAINT):
        few = sum(losses[layer.site] < threshold for layer in layers)
        share = share_below(layers, losses, threshold, total)
        lines += ["", f"Below {threshold:.0e}: {few} of {len(layers)} layers, {share:.1%} of the denoiser's parameters."]
    return "\n".join(lines)
