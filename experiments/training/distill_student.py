"""The distillation stage of a job."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import hydra
import torch
from torch import nn

from common.cost.macs import probe_inputs, shape_twin
from common.denoisers.denoiser import architecture_of
from common.diffusion.sampling import predict
from common.errors import InputError
from common.models.latent_diffusion import LatentDiffusion
from common.pruning.pruned_denoiser import REPLACEMENTS
from common.pruning.pruning_callback import PruningCallback
from common.runtime.processes import process_count
from common.training.batches import TensorRows
from common.training.block_local import list_segments
from common.training.distillation import DenoiserTraining, needs_whole_student
from common.training.fit import ExponentialAverage, fit, parallel_settings
from common.training.fsdp import gather_into
from common.training.schedules import scheduler
from experiments.shared.settings import DistillationSettings, Settings

TRAINING_PRECISIONS = {"32-true": False, "16-mixed": True, "bf16-mixed": True}  # whether matrix products are in half precision
CUDA_GRAPHS = ("reduce-overhead", "max-autotune")  # modes of torch.compile that record them


def feature_pairs(features: Sequence[str] | None, student: nn.Module, teacher: nn.Module) -> list[tuple[str, str]]:
    """(student path, teacher path) of the outputs that are compared.

    features: "<student path>=<teacher path>", or a shell pattern over the teacher's module paths for places that are called
    alike in both (a * stays within one part of a path); None: the places of the teacher's architecture. Where a place is gone
    in the student, the pair moves to the enclosing block's output in both. InputError for what the teacher does not have.
    """
    if features is None:
        features = architecture_of(teacher).features(teacher)
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


def unread_parameters(denoiser: nn.Module) -> list[nn.Parameter]:
    """Those that a forward pass does not read: of a time embedding, say, when no block is left that takes it.

    What it reads are the leaves of its graph.
    """
    twin = shape_twin(denoiser)
    arguments, conditions = probe_inputs(twin)
    waiting, seen, read = [predict(twin, *arguments, conditions).grad_fn], set(), set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            read.add(getattr(node, "variable", None))
            waiting += [following for following, _ in node.next_functions]
    return [denoiser.get_parameter(name) for name, weight in twin.named_parameters() if weight not in read]


def untrained_parameters(settings: DistillationSettings, student: nn.Module, teacher: nn.Module) -> list[nn.Parameter]:
    """Those of the student that no loss of the recipe reads."""
    if needs_whole_student(settings.loss_weights):
        return unread_parameters(student)
    trained = {weight for each in list_segments(student, teacher) for weight in student.get_submodule(each.kept).parameters()}
    return [parameter for parameter in student.parameters() if parameter not in trained]


def trainer_settings(distill: DistillationSettings, device: torch.device, whole: bool = False) -> dict[str, Any]:
    """Lightning's arguments: distill.trainer on the device that the teacher is on, and with the processes of this job.

    whole: each process holds the whole network, whatever the strategy. InputError for devices and nodes, which are as many as
    processes were started, and for a precision that is unknown or that the strategy does not have.
    """
    settings = dict(distill.trainer)
    for name in ("devices", "num_nodes"):
        if settings.get(name, 1) not in (1, "1", [0]):
            raise InputError(
                f"distill.trainer.{name}={settings[name]}: a job trains with the processes that were started for it: "
                "torchrun --nproc_per_node=<devices> --nnodes=<nodes> run.py ..."
            )
    mode = (distill.compile or {}).get("mode")
    if mode in CUDA_GRAPHS and distill.accumulate > 1:
        raise InputError(
            f"distill.compile.mode={mode} replays CUDA graphs, which overwrite the gradients that "
            f"distill.accumulate={distill.accumulate} adds up: give max-autotune-no-cudagraphs."
        )
    devices = [device.index or 0] if device.type == "cuda" else 1
    settings |= {"accelerator": device.type, "devices": devices}
    strategy = "ddp" if whole else settings.get("strategy", "auto")
    if strategy == "fsdp" and process_count() > 1 and settings["precision"] == "16-mixed":
        raise InputError(
            f"distill.trainer.strategy=fsdp scales no losses for distill.trainer.precision={settings['precision']}: give "
            "bf16-mixed or 32-true, or take ddp."
        )
    return settings | {"strategy": "auto"} | parallel_settings(strategy)


def distill(
    given: Settings,
    teacher: LatentDiffusion,
    student: nn.Module,
    rows: TensorRows,
    folder: Path,
    callbacks: Sequence[PruningCallback] = (),
    watch: Callable[[ExponentialAverage | None], Any] | None = None,
    loggers: Sequence[Any] = (),
) -> nn.Module:
    """The student after distill.steps optimiser steps on `rows`; goes on from the last checkpoint in `folder`.

    callbacks: the method's own. watch: makes a callback that looks at the
    student on the way, from the average of its weights or None. loggers: Lightning's, besides the CSV file in `folder`.
    """
    settings = given.distill
    student.train().requires_grad_(True)
    for parameter in untrained_parameters(settings, student, teacher.denoiser):  # no gradient reaches them: DDP would wait
        parameter.requires_grad_(False)
    if settings.gradient_checkpointing:
        student.enable_gradient_checkpointing()
    sharded = settings.trainer.get("strategy") == "fsdp" and process_count() > 1
    if sharded and (callbacks or watch):
        raise InputError(
            "distill.trainer.strategy=fsdp gives each process a part of every weight; evaluation.every, and methods that act "
            "during training (l1_diff), need them whole: take ddp."
        )
    if sharded and settings.local_weight:
        raise InputError("distill.local_weight runs blocks alone, which distill.trainer.strategy=fsdp does not know: take ddp.")
    finished = copy.deepcopy(student).cpu() if sharded else student
    module = DenoiserTraining(
        student,
        teacher.scheduler,
        hydra.utils.instantiate(settings.optimizer),
        scheduler(**asdict(settings.schedule), steps=settings.steps),
        given.seed,
        condition_dropout=settings.condition_dropout,
        null_condition={name: value.cpu() for name, value in teacher.null_condition().items()},
        task_weight=settings.task_weight,
        output_weight=settings.output_weight,
        feature_weight=settings.feature_weight,
        local_weight=settings.local_weight,
        feature_pairs=feature_pairs(settings.features, student, teacher.denoiser) if settings.feature_weight else (),
        feature_losses=hydra.utils.instantiate(settings.feature_loss),
        teacher=teacher.denoiser,
        compile_options=settings.compile,
    )
    average = ExponentialAverage(student, settings.ema_decay) if settings.ema_decay else None
    further = [*([average] if average else []), *([watch(average)] if watch else [])]
    fit(
        module,
        rows,
        steps=settings.steps,
        batch_size=settings.batch_size,
        accumulate=settings.accumulate,
        seed=given.seed,
        folder=folder,
        description="distilling",
        checkpoint_every=settings.checkpoint_every,
        trainer=trainer_settings(settings, teacher.device),
        callbacks=[*callbacks, *further],
        loggers=loggers,
    )
    module.remove_hooks()
    if sharded:
        gather_into(finished, student)
    if average:
        average.copy_to_network(finished)
    for callback in callbacks:
        callback.finish(finished)
    return finished.eval().requires_grad_(False)
