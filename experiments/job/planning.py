"""The planning stage of a job: what is calibrated on, the plan of each part, and the pruned pipeline."""

import functools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.cost.macs import probe_inputs, shape_twin
from common.data.lazy_images import subset
from common.data.teacher_samples import latents_of
from common.diffusion.sampling import predict, with_guidance
from common.errors import InputError, first_line
from common.models.latent_diffusion import LatentDiffusion
from common.pruning.budget import least_within
from common.pruning.masks import apply_masks, plan_masks
from common.pruning.plan import PLAN_FILE, Plan, apply_plan, has_masks
from common.runtime.collectives import first_enters, on_first
from common.runtime.content import content_name
from common.runtime.locks import locked
from common.runtime.processes import is_first
from common.runtime.seeding import generator_for
from common.scoring.calibration import Calibration, build_calibration
from common.scoring.linear_maps import fit_linear_maps
from experiments.evaluation.alignment import CaptionAlignment
from experiments.evaluation.measure_cost import cost_of_plan
from experiments.shared.job import Job
from experiments.training.cached_latents import check_captions


def training_order(job: Job) -> list[int]:
    """A seeded order of the training images, from whose start calibration takes its rows."""

    return torch.randperm(len(job.data("train")), generator=generator_for(job.settings.calibration.seed, 4)).tolist()


def calibrate(job: Job) -> Calibration:
    """The calibration set: a seeded draw of training captions (no captions for unconditional models), and training rows."""
    settings, teacher, data, order = job.settings.calibration, job.teacher, job.data("train"), training_order(job)
    captioned = teacher.text_encoder is not None
    check_captions(job.settings.task.name, teacher, data)

    def training_rows() -> tuple[Any, dict[str, Any]]:
        chosen = order[: settings.data_rows]
        latents = latents_of(teacher, subset(data.images, chosen), job.settings.evaluation.batch_size).to(teacher.device)
        return latents, teacher.encode_captions([data.captions[i] for i in chosen]) if captioned else {}

    chosen = order[: settings.num_conditions] if captioned else []
    named = captioned and data.names is not None
    conditioned = len(chosen) or 1  # without captions one implicit condition (LD-Pruner, section 2.4)
    conditions = teacher.encode_captions([data.captions[i] for i in chosen]) if captioned else {}
    return build_calibration(
        with_guidance(teacher.denoiser, conditions, settings.guidance_scale),
        teacher.null_condition(),
        teacher.latent_shape,
        teacher.scheduler,
        num_conditions=conditioned,
        samples=settings.samples,
        steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        seed=settings.seed,
        data=functools.cache(training_rows),
        alignment=CaptionAlignment(job, teacher, [data.names[i] for i in chosen]) if named else None,
    ).to(teacher.device)


def check_plan_runs(student: nn.Module, plan: Plan) -> None:
    """InputError where no forward pass of a pruned denoiser goes through, as of edits that leave other shapes than follow."""
    if not hasattr(student, "conv_in"):  # an autoencoder, of which masks alone can be made
        return
    try:
        twin = shape_twin(student)
        arguments, conditions = probe_inputs(twin)
        with torch.no_grad():
            predict(twin, *arguments, conditions)
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise InputError(
            f"The method's plan of {len(plan.edits)} edits leaves a network that does not run: {first_line(error).rstrip('.')} "
            "(what each operation leaves: common/pruning/pruned_denoiser.py)."
        ) from error


def kept_plan(folder: Path, teacher: LatentDiffusion, part: str, make: Callable[[], Plan]) -> Plan:
    """The plan of a part in `folder`, made when it is not there; InputError when it is of another teacher.

    One that cannot be applied is not kept: with the method's code mended the same command goes on.
    """
    if not on_first(lambda: (folder / PLAN_FILE).is_file()):
        made = make()
        if not isinstance(made, Plan):
            raise InputError(
                f"The method's plan is a {type(made).__name__}; a common.Plan is needed (docs/adding_a_method.md)."
            )
        check_plan_runs(apply_plan(getattr(teacher, part), made), made)
        on_first(lambda: made.save(folder))
    plan = Plan.load(folder)
    if plan.teacher != teacher.fingerprint():
        raise InputError(f"{folder.parent} was begun with another teacher in {teacher.folder}; delete it to start anew.")
    return plan


def make_plans(job: Job) -> dict[str, Plan]:
    """The plan of each part that is pruned: the denoiser's, and the autoencoder's where the method prunes it."""
    teacher, method, folder, calibration = job.teacher, job.method, job.folder, calibrate(job)
    known = teacher.fingerprint()
    scores = job.cache / f"scores{job.precision_suffix}"

    def denoiser_plan() -> Plan:
        shared = scores / f".{content_name(type(method).__name__, known)}.lock"  # by the jobs whose scores may be the same
        lock = functools.partial(locked, shared, f"scores are being computed in {scores}")
        with first_enters(lock), job.autocast():
            if method.budget is None:
                plan = method.plan(teacher.denoiser, calibration, known, scores)
                if job.settings.replacement == "linear":
                    plan = fit_linear_maps(teacher.denoiser, plan, calibration, job.settings.evaluation.batch_size)
                return plan
            plan, reached = least_within(
                method,
                lambda other: other.plan(teacher.denoiser, calibration, known, scores),
                functools.partial(cost_of_plan, job),
                lambda name: 1.0 if name == "latency_ratio" else cost_of_plan(job, Plan(method="", edits=()), name),
                tell=lambda line: print(line, file=sys.stderr, flush=True) if is_first() else None,
            )
        return replace(plan, settings=plan.settings | {"budget": method.budget, "budget_reached": reached})

    plans = {"denoiser": kept_plan(folder / "plan", teacher, "denoiser", denoiser_plan)}
    if "autoencoder" in method.pruned_parts:
        images = job.data("train").images[training_order(job)[: job.settings.calibration.data_rows]]
        plans["autoencoder"] = kept_plan(
            folder / "autoencoder_plan",
            teacher,
            "autoencoder",
            lambda: method.autoencoder_plan(teacher.autoencoder, images, known),
        )
    return plans


def prune(job: Job, plans: dict[str, Plan]) -> LatentDiffusion:
    """The pipeline with its pruned parts; init=scratch gives the denoiser random weights."""

    teacher = job.teacher
    parts = {part: apply_plan(getattr(teacher, part), plan) for part, plan in plans.items()}
    if job.settings.init == "scratch":
        torch.manual_seed(job.settings.seed)
        denoiser, plan = parts["denoiser"], plans["denoiser"]
        parts["denoiser"] = type(denoiser).from_config(denoiser.config).to(teacher.device).eval()
        if has_masks(plan.edits):
            apply_masks(parts["denoiser"], plan_masks(plan.edits, plan.tensors))
    return teacher.with_parts(**parts)
