"""Sizes, speeds and sparsity of the models of a job."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from common.cost.latency import Latency, compare_latency
from common.cost.macs import checkpoint_bytes, count_macs, count_nonzero, count_parameters
from common.denoisers.denoiser import Conditions
from common.diffusion.sampling import predict, with_guidance
from common.errors import InputError, first_line
from common.metrics.similarity import peak_signal_to_noise
from common.models.latent_diffusion import LatentDiffusion
from common.pruning.budget import size_of
from common.pruning.plan import Plan, apply_plan
from common.runtime.collectives import on_first
from experiments.evaluation.models import Models
from experiments.shared.job import Job
from l1_diff.semi_structured import to_semi_structured
from l1_diff.sparsity import PRUNABLE, sparsity

HELD_OUT = 512  # images on which an autoencoder's reconstructions are measured


def sparsity_figures(network: nn.Module, plan: Plan | None) -> dict[str, float | int]:
    """Zeros of a network in both accountings of l1_diff.sparsity, nominal over the kinds of modules that `plan` prunes."""
    counts = sparsity(network, plan.settings.get("modules", PRUNABLE) if plan else PRUNABLE)
    return {"nominal": counts.nominal, "actual": counts.actual, "zeros": counts.zeros, "weights": counts.weights}


def measure_autoencoder(autoencoder: nn.Module, images: torch.Tensor, plan: Plan) -> dict[str, Any]:
    """Size, sparsity, and PSNR (dB) of reconstructions of held-out uint8 images (count, channels, height, width)."""
    return {
        "parameters": count_parameters(autoencoder),
        "nonzero_parameters": count_nonzero(autoencoder),
        "checkpoint_bytes_fp16": checkpoint_bytes(autoencoder),
        "psnr": peak_signal_to_noise(autoencoder, images),
        "sparsity": sparsity_figures(autoencoder, plan),
    }


def forward_call(denoiser: nn.Module, inputs: tuple[torch.Tensor, ...], conditions: Conditions) -> Callable[[], torch.Tensor]:
    """One forward pass, ready to be timed."""
    return partial(torch.no_grad()(predict), denoiser, *inputs, conditions)


def in_dtype(dtype: torch.dtype, *arguments: Any) -> Any:
    """The arguments of a forward pass with their real numbers in `dtype`."""
    return tree_map_only(torch.Tensor, lambda value: value.to(dtype) if value.is_floating_point() else value, arguments)


def semi_structured_latency(
    denoiser: nn.Module, plan: Plan, inputs: tuple[torch.Tensor, ...], conditions: Conditions, rounds: int
) -> dict[str, Any]:
    """What the kernels for 2:4 weights gain, in fp16 on a GPU: `ratio` of times to the same network with dense kernels.

    Empty for other patterns and on a CPU, which has no such kernels; `converted` counts the layers that run sparse, and
    `reason` tells why none does.
    """
    if plan.settings.get("pattern") != "2:4" or not inputs[0].is_cuda:
        return {}
    dense = copy.deepcopy(denoiser).half()
    sparse = copy.deepcopy(dense)
    halves, half_conditions = in_dtype(torch.float16, inputs, conditions)
    calls = {name: forward_call(each, halves, half_conditions) for name, each in (("dense", dense), ("sparse", sparse))}
    try:
        converted = to_semi_structured(sparse)
        latency = compare_latency(calls, "dense", rounds=rounds)["sparse"]
    except torch.OutOfMemoryError:
        raise
    except (InputError, RuntimeError, ValueError) as error:  # a GPU, or its kernels, that cannot multiply such weights
        return {"semi_structured": {"converted": 0, "reason": first_line(error)}}
    return {"semi_structured": {"converted": len(converted), **asdict(latency)}}


def denoiser_inputs(job: Job, teacher: LatentDiffusion, batch: int) -> tuple[tuple[torch.Tensor, torch.Tensor], Conditions]:
    """Arguments of `predict` for denoisers of the job's teacher, `batch` rows."""
    latents = torch.zeros(batch, *teacher.latent_shape, device=teacher.device)
    timesteps = torch.full((batch,), 500, device=teacher.device)
    empty = with_guidance(teacher.denoiser, teacher.null_condition(), job.settings.evaluation.guidance_scale)
    return (latents, timesteps), {name: value.expand(batch, *value.shape[1:]) for name, value in empty.items()}


def measure_latency(
    job: Job,
    teacher: LatentDiffusion,
    networks: Mapping[str, nn.Module],
    changes: Mapping[str, Callable[[nn.Module], nn.Module]] | None = None,
) -> dict[str, Latency]:
    """Time of a forward pass of each network, by name, against that of "teacher"; changes: what is made of some before."""
    evaluation, found = job.settings.evaluation, dict(networks)
    timed = denoiser_inputs(job, teacher, evaluation.latency_batch)
    if job.settings.inference_precision == "bf16":  # autocast would cast all weights in each pass
        timed = in_dtype(torch.bfloat16, *timed)
        found = {who: copy.deepcopy(network).to(torch.bfloat16) for who, network in found.items()}
    found |= {who: change(found[who]) for who, change in (changes or {}).items()}
    calls = {who: forward_call(each, *timed) for who, each in found.items()}
    return compare_latency(calls, "teacher", rounds=evaluation.latency_rounds)


def cost_of_plan(job: Job, plan: Plan, name: str) -> float:
    """What a budget bounds (common.pruning.budget), of the teacher's denoiser after a plan; times are the first process's."""
    student = apply_plan(job.teacher.denoiser, plan)
    if name == "macs":
        return count_macs(student, *denoiser_inputs(job, job.teacher, 1)).total
    if name == "latency_ratio":
        networks = {"teacher": job.teacher.denoiser, "student": student}
        return on_first(lambda: measure_latency(job, job.teacher, networks)["student"].ratio)
    return size_of(student, name)


def measure_cost(job: Job, models: Models, plans: Mapping[str, Plan]) -> dict[str, dict[str, Any]]:
    """Parameters, all and not zero, sparsity, MACs of one forward pass of one sample, file size, latency against the teacher's.

    All of the denoiser, and of the autoencoder where `plans` prune it; what is the same in every model is left out.
    """
    evaluation = job.settings.evaluation
    latencies = measure_latency(job, models.teacher, {who: model.denoiser for who, model in models.by_name().items()})
    rows = {}
    for who, model in models.by_name().items():
        denoiser = model.denoiser
        if who != "distilled":  # distillation changes weights alone
            macs = count_macs(denoiser, *denoiser_inputs(job, models.teacher, 1))
        rows[who] = {
            "parameters": count_parameters(denoiser),
            "nonzero_parameters": count_nonzero(denoiser),
            "macs": macs.total,
            "macs_without_attention_products": macs.without_attention_products,
            "checkpoint_bytes_fp16": checkpoint_bytes(denoiser),
            "sparsity": sparsity_figures(denoiser, plans["denoiser"]),
            "latency": asdict(latencies[who]),
        }
    timed = denoiser_inputs(job, models.teacher, evaluation.latency_batch)
    rounds = evaluation.latency_rounds
    rows[list(rows)[-1]] |= semi_structured_latency(models.student.denoiser, plans["denoiser"], *timed, rounds)
    if "autoencoder" in plans:
        images = job.data("test").images[:HELD_OUT]
        for who, model in models.by_name().items():
            rows[who]["autoencoder"] = measure_autoencoder(model.autoencoder, images, plans["autoencoder"])
    return rows
