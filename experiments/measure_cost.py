"""Sizes, speeds and sparsity of the models of a job."""

from collections.abc import Mapping
from typing import Any

import hydra
import torch
from omegaconf import DictConfig
from torch import nn

from common.plans import Plan
from common.teachers import Teacher

HELD_OUT = 512  # images on which an autoencoder's reconstructions are measured


def sparsity_figures(network: nn.Module, plan: Plan | None) -> dict[str, float | int]:
    """Zeros of a network in both accountings of l1_diff.sparsity, nominal over the kinds of modules that `plan` prunes."""
    from l1_diff.sparsity import PRUNABLE, sparsity

    counts = sparsity(network, plan.settings.get("modules", PRUNABLE) if plan else PRUNABLE)
    return {"nominal": counts.nominal, "actual": counts.actual, "zeros": counts.zeros, "weights": counts.weights}


def measure_autoencoder(autoencoder: nn.Module, images: torch.Tensor, plan: Plan) -> dict[str, Any]:
    """Size, sparsity, and PSNR (dB) of reconstructions of held-out uint8 images (count, channels, height, width)."""
    from common.cost import checkpoint_bytes, count_nonzero, count_parameters
    from experiments.autoencoder_training import peak_signal_to_noise

    return {
        "parameters": count_parameters(autoencoder),
        "nonzero_parameters": count_nonzero(autoencoder),
        "checkpoint_bytes_fp16": checkpoint_bytes(autoencoder),
        "psnr": peak_signal_to_noise(autoencoder, images),
        "sparsity": sparsity_figures(autoencoder, plan),
    }


def measure_cost(cfg: DictConfig, models: Mapping[str, Teacher], plans: Mapping[str, Plan]) -> dict[str, dict[str, Any]]:
    """Parameters, all and not zero, sparsity, MACs of one forward pass of one sample, file size, latency against the teacher's.

    All of the denoiser, and of the autoencoder where `plans` prune it; what is the same in every model is left out.
    """
    from common.cost import checkpoint_bytes, count_macs, count_nonzero, count_parameters
    from common.latency import compare_latency

    teacher = models["teacher"]

    def arguments(batch: int) -> tuple[tuple[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]]:
        latents = torch.zeros(batch, *teacher.latent_shape, device=teacher.device)
        timesteps = torch.full((batch,), 500, device=teacher.device)
        conditions = {name: value.expand(batch, *value.shape[1:]) for name, value in teacher.empty_condition().items()}
        return (latents, timesteps), conditions

    inputs, conditions = arguments(cfg.evaluation.latency_batch)

    def call(denoiser: nn.Module) -> Any:
        def run() -> None:
            with torch.no_grad():
                denoiser(*inputs, **conditions)

        return run

    calls = {who: call(model.denoiser) for who, model in models.items()}
    latencies = compare_latency(calls, "teacher", rounds=cfg.evaluation.latency_rounds)
    rows = {}
    for who, model in models.items():
        denoiser = model.denoiser
        macs = count_macs(denoiser, *arguments(1))
        latency = latencies[who]
        rows[who] = {
            "parameters": count_parameters(denoiser),
            "nonzero_parameters": count_nonzero(denoiser),
            "macs": macs.total,
            "macs_without_attention_products": macs.without_attention_products,
            "checkpoint_bytes_fp16": checkpoint_bytes(denoiser),
            "sparsity": sparsity_figures(denoiser, plans["denoiser"]),
            "latency": {
                "milliseconds": latency.milliseconds,
                "interquartile_range": latency.interquartile_range,
                "ratio": latency.ratio,
                "ratio_spread": latency.ratio_spread,
                "time_reduction": latency.time_reduction,
            },
        }
    if "autoencoder" in plans:
        images = hydra.utils.instantiate(cfg.task.data, split="test").images[:HELD_OUT]
        for who, model in models.items():
            rows[who]["autoencoder"] = measure_autoencoder(model.autoencoder, images, plans["autoencoder"])
    return rows
