"""The distillation stage of a job."""

from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from common.batches import TensorRows
from common.teachers import Teacher
from experiments.caches import cached_tensors, content_name


def block_paths(denoiser: nn.Module) -> list[str]:
    """The blocks whose outputs BK-SDM compares: every down block, the mid block, every up block."""
    paths = [f"down_blocks.{index}" for index in range(len(denoiser.down_blocks))]
    paths += ["mid_block"] if denoiser.mid_block is not None else []
    return paths + [f"up_blocks.{index}" for index in range(len(denoiser.up_blocks))]


def training_rows(cfg: DictConfig, teacher: Teacher, cache: Path) -> TensorRows:
    """Latents and conditions of the training images, computed once for all jobs on this teacher and data."""
    from common.progress import progress_bar

    def compute() -> dict[str, torch.Tensor]:
        data = hydra.utils.instantiate(cfg.task.data, split="train")
        with progress_bar("encoding images", len(data)) as bar:
            latents = teacher.encode_images(data.images, advance=bar.advance)
        return {"latents": latents, **teacher.encode_captions(data.captions)}

    name = content_name("training rows", teacher.fingerprint(), OmegaConf.to_container(cfg.task.data))
    return TensorRows(**cached_tensors(cache / f"{name}.safetensors", compute))


def distill(cfg: DictConfig, teacher: Teacher, student: nn.Module, folder: Path, cache: Path) -> nn.Module:
    """The student after cfg.distill.steps optimiser steps; goes on from the last checkpoint in `folder`."""
    from common.distillation import DenoiserTraining
    from common.schedules import scheduler
    from common.training import ExponentialAverage, fit

    settings = cfg.distill
    student.train().requires_grad_(True)
    if settings.gradient_checkpointing:
        student.enable_gradient_checkpointing()
    empty = teacher.empty_condition().get("encoder_hidden_states")
    module = DenoiserTraining(
        student,
        teacher.scheduler,
        hydra.utils.instantiate(settings.optimizer),
        scheduler(**settings.schedule, steps=settings.steps),
        cfg.seed,
        condition_dropout=settings.condition_dropout,
        empty_condition=None if empty is None else empty[0].cpu(),
        task_weight=settings.task_weight,
        output_weight=settings.output_weight,
        feature_weight=settings.feature_weight,
        feature_pairs=[(path, path) for path in block_paths(teacher.denoiser)],
        teacher=teacher.denoiser,
    )
    average = ExponentialAverage(student, settings.ema_decay) if settings.ema_decay else None
    fit(
        module,
        training_rows(cfg, teacher, cache),
        steps=settings.steps,
        batch_size=settings.batch_size,
        accumulate=settings.accumulate,
        seed=cfg.seed,
        folder=folder,
        description="distilling",
        checkpoint_every=settings.checkpoint_every,
        trainer=OmegaConf.to_container(settings.trainer, resolve=True),
        callbacks=[average] if average else [],
    )
    module.remove_taps()
    if average:
        average.copy_to_network()
    return student.eval().requires_grad_(False)
