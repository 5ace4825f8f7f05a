"""The distillation stage of a job."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from common.batches import TensorRows
from common.errors import InputError
from common.pruned_unet import REPLACEMENTS
from common.teachers import Teacher
from common.training import ExponentialAverage
from experiments.caches import cached_tensors, content_name
from experiments.last_word import last_word


def feature_pairs(features: list[str], student: nn.Module, teacher: nn.Module) -> list[tuple[str, str]]:
    """(student path, teacher path) of the outputs that are compared.

    features: "<student path>=<teacher path>", or a shell pattern over the teacher's module paths for places that are called
    alike in both (a * stays within one part of a path). Where a place is gone in the student, the pair moves to the
    enclosing block's output in both. InputError for what the teacher does not have.
    """
    if not features:
        raise InputError("distill.features is empty: name some, or set distill.feature_weight=0.")
    known = [name for name, _ in teacher.named_modules() if name]
    wanted = []
    for entry in features:
        student_path, explicit, pattern = entry.rpartition("=")
        depth = pattern.count(".")
        found = [name for name in known if name.count(".") == depth and fnmatchcase(name, pattern)]
        if not found:
            raise InputError(f"distill.features: {pattern!r} matches no module of the teacher; {known[0]!r} is one.")
        wanted += [(student_path if explicit else name, name) for name in found]
    gone = (*REPLACEMENTS, nn.ModuleList)  # a list of modules has no output of its own
    present = {name for name, module in student.named_modules() if name and not isinstance(module, gone)}
    pairs: dict[tuple[str, str], None] = {}
    for student_path, teacher_path in wanted:
        while student_path and student_path not in present:
            student_path, teacher_path = student_path.rpartition(".")[0], teacher_path.rpartition(".")[0]
        if student_path:
            pairs[student_path, teacher_path] = None
    return list(pairs)


def trainer_settings(cfg: DictConfig, device: torch.device) -> dict[str, Any]:
    """Lightning's arguments: cfg.distill.trainer on the device that the teacher is on; InputError for more than one device."""
    settings = OmegaConf.to_container(cfg.distill.trainer, resolve=True)
    if settings.get("devices", 1) not in (1, "1", [0]) or settings.get("num_nodes", 1) != 1:
        raise InputError(f"distill.trainer.devices={settings.get('devices')}: jobs train on one device so far; give devices=1.")
    devices = [device.index or 0] if device.type == "cuda" else 1
    return {**settings, "accelerator": device.type, "devices": devices}


def training_rows(cfg: DictConfig, teacher: Teacher, cache: Path) -> TensorRows:
    """Latents and conditions of the training images, computed once for all jobs on this pipeline and data in `cache`."""
    from common.progress import progress_bar

    def compute() -> dict[str, torch.Tensor]:
        data = hydra.utils.instantiate(cfg.task.data, split="train")
        with progress_bar("encoding images", len(data)) as bar:
            latents = teacher.encode_images(data.images, advance=bar.advance)
        return {"latents": latents, **(teacher.encode_captions(data.captions) if teacher.text_encoder is not None else {})}

    name = content_name("training rows", teacher.fingerprint(), OmegaConf.to_container(cfg.task.data))
    columns = cached_tensors(cache / f"{name}.safetensors", compute)
    if tuple(columns["latents"].shape[1:]) != teacher.latent_shape:
        made, wanted = (" x ".join(map(str, shape)) for shape in (columns["latents"].shape[1:], teacher.latent_shape))
        raise InputError(f"The data set's images become {made} latents, the teacher's are {wanted}: give larger images.")
    return TensorRows(**columns)


def distill(
    cfg: DictConfig,
    teacher: Teacher,
    student: nn.Module,
    rows: TensorRows,
    folder: Path,
    callbacks: Sequence[Any] = (),
    watch: Callable[[ExponentialAverage | None], Any] | None = None,
    loggers: Sequence[Any] = (),
) -> nn.Module:
    """The student after cfg.distill.steps optimiser steps on `rows`; goes on from the last checkpoint in `folder`.

    callbacks: the method's own (Lightning), see experiments/last_word.py. watch: makes a callback that looks at the
    student on the way, from the average of its weights or None. loggers: Lightning's, besides the CSV file in `folder`.
    """
    from common.distillation import DenoiserTraining
    from common.schedules import scheduler
    from common.training import fit

    settings = cfg.distill
    for name in ("steps", "batch_size", "accumulate", "checkpoint_every"):
        if settings[name] < 1:
            raise InputError(f"distill.{name}={settings[name]}: at least 1 is needed (distill=none goes without).")
    student.train().requires_grad_(True)
    if settings.gradient_checkpointing:
        student.enable_gradient_checkpointing()
    module = DenoiserTraining(
        student,
        teacher.scheduler,
        hydra.utils.instantiate(settings.optimizer),
        scheduler(**settings.schedule, steps=settings.steps),
        cfg.seed,
        condition_dropout=settings.condition_dropout,
        empty_condition={name: value.cpu() for name, value in teacher.empty_condition().items()},
        task_weight=settings.task_weight,
        output_weight=settings.output_weight,
        feature_weight=settings.feature_weight,
        feature_pairs=feature_pairs(list(settings.features), student, teacher.denoiser) if settings.feature_weight else (),
        feature_losses=hydra.utils.instantiate(settings.feature_loss),
        teacher=teacher.denoiser,
    )
    average = ExponentialAverage(student, settings.ema_decay) if settings.ema_decay else None
    further = [*([average] if average else []), *([watch(average)] if watch else [])]
    fit(
        module,
        rows,
        steps=settings.steps,
        batch_size=settings.batch_size,
        accumulate=settings.accumulate,
        seed=cfg.seed,
        folder=folder,
        description="distilling",
        checkpoint_every=settings.checkpoint_every,
        trainer=trainer_settings(cfg, teacher.device),
        callbacks=[*callbacks, *further],
        loggers=loggers,
    )
    module.remove_taps()
    if average:
        average.copy_to_network()
    last_word(student, callbacks)
    return student.eval().requires_grad_(False)
