"""Trains a teacher's denoiser on cached latents, together with its text encoder where it has one."""

import json
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
import lightning as L
import torch
from torch import nn

from common.denoisers.denoiser import ARCHITECTURES, architecture_of
from common.diffusion.images import save_grid, upright
from common.diffusion.sampling import sample_latents
from common.training.batches import TensorRows
from common.training.distillation import DenoiserTraining
from common.training.fit import ExponentialAverage, fit
from common.training.schedules import scheduler as learning_rate
from experiments.evaluation.layer_effects import summary, what_layers_do
from experiments.shared.settings import TrainTeacher
from experiments.teacher_training.conditioners import Unconditional, conditioner
from experiments.teacher_training.initial_weights import rescale_initial_weights

SHEET = 64  # samples on a sheet
ROWS = 64  # latents on which it is looked at what the layers do


class SampleSheets(L.Callback):
    """What `write` makes of the averaged weights every `every` steps, and the last losses."""

    def __init__(self, average: ExponentialAverage, every: int, write: Any):
        self.average, self.every, self.write = average, every, write
        self.losses: deque[float] = deque(maxlen=200)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.losses.append(float(trainer.callback_metrics["loss"]))
        if trainer.global_step % self.every == 0:
            self.average.ema.store(self.average.network.parameters())
            self.average.copy_to_network()
            self.write(trainer.global_step)
            self.average.ema.restore(self.average.network.parameters())


def train_denoiser(
    training: TrainTeacher, latents: torch.Tensor, data: Any, autoencoder: nn.Module, work: Path
) -> tuple[dict[str, Any], float | None]:
    """The pipeline's parts beside the autoencoder (averaged weights), and the mean loss of the last 200 steps.

    `data`: the training set behind the rows of `latents`, for its captions where the teacher has a text encoder.
    """
    settings = training.teacher_training.denoiser
    start = None if training.start is None else Path(training.start)
    kind = hydra.utils.get_class(settings.network["_target_"])
    architecture = ARCHITECTURES[kind.__name__]
    torch.manual_seed(training.seed)
    condition = conditioner(training.teacher_training, data, start, work, architecture.reads_text)
    if start is None:
        denoiser = hydra.utils.instantiate(settings.network, _convert_="all")
        if settings.initial_weights is not None:
            rescale_initial_weights(denoiser, **asdict(settings.initial_weights))
    else:
        denoiser = kind.from_pretrained(start / architecture.part, torch_dtype=torch.float32)
    networks = nn.ModuleList([denoiser, *condition.networks()]).train().to(autoencoder.device)
    scheduler = hydra.utils.instantiate(settings.scheduler)
    module = DenoiserTraining(
        denoiser,
        scheduler,
        hydra.utils.instantiate(settings.optimizer),
        learning_rate(**asdict(settings.schedule), steps=settings.steps),
        training.seed,
        condition_dropout=settings.condition_dropout,
        timestep_density=settings.timestep_density,
        **condition.options(),
    )
    average = ExponentialAverage(networks, settings.ema_decay)
    chosen = torch.arange(min(ROWS, len(latents))) * len(latents) // min(ROWS, len(latents))

    def look(step: int) -> None:
        write_sample_sheet(training, denoiser, condition, scheduler, autoencoder, work / f"samples_{step:06d}.png")
        networks.eval()
        losses = what_layers_do(denoiser, scheduler, latents[chosen], condition.rows(chosen))
        networks.train()
        told = {"step": step, "loss": sum(sheets.losses) / len(sheets.losses), "layers": losses}
        with open(work / "layers.jsonl", "a", encoding="utf-8") as handle:
            handle.write(json.dumps(told) + "\n")
        print(f"step {step}: loss {told['loss']:.4f}; {summary(denoiser, losses)}", flush=True)

    sheets = SampleSheets(average, training.teacher_training.sample_every, look)
    fit(
        module,
        TensorRows(latents=latents, **condition.columns()),
        steps=settings.steps,
        batch_size=settings.batch_size,
        seed=training.seed,
        folder=work / "denoiser",
        description="denoiser",
        checkpoint_every=training.teacher_training.checkpoint_every,
        trainer=training.teacher_training.trainer,
        callbacks=[average, sheets],
    )
    average.copy_to_network()
    networks.eval()
    write_sample_sheet(training, denoiser, condition, scheduler, autoencoder, work / "samples.webp")
    last_loss = sum(sheets.losses) / len(sheets.losses) if sheets.losses else None
    return {architecture.part: denoiser, "scheduler": scheduler, **condition.parts()}, last_loss


@torch.no_grad()
def write_sample_sheet(
    training: TrainTeacher,
    denoiser: nn.Module,
    condition: Unconditional,
    scheduler: Any,
    autoencoder: Any,
    path: Path,
) -> None:
    """Samples for the condition's examples, eight a row, sample i from seed i."""
    settings = training.teacher_training
    conditions, empty = condition.examples(SHEET)
    count = min((len(value) for value in conditions.values()), default=SHEET)
    latents = sample_latents(
        denoiser,
        scheduler,
        architecture_of(denoiser).latent_shape(denoiser),
        list(range(count)),
        conditions,
        empty,
        settings.inference_steps,
        settings.guidance_scale,
        batch_size=SHEET,
    )
    images = autoencoder.decode(latents.to(autoencoder.device)).sample.cpu()
    save_grid(upright(images, training.task.sound), path, columns=8)
