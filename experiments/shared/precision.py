"""The precision in which denoisers are scored and sampled; training has its own (distill.trainer.precision)."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from omegaconf import DictConfig

from common.errors import InputError

PRECISIONS = ("32", "bf16")  # not fp16: gradients that are scored would vanish without a scaled loss


def pick_precision(cfg: DictConfig) -> str:
    """cfg.inference_precision; InputError for an unknown one."""
    precision = str(cfg.inference_precision)
    if precision not in PRECISIONS:
        raise InputError(f"inference_precision={precision} is none of {', '.join(PRECISIONS)}.")
    return precision


def inference_autocast(cfg: DictConfig, device: Any) -> AbstractContextManager[Any]:
    """Matrix products and convolutions inside run in cfg.inference_precision, from weights in float32 (torch.autocast)."""
    import torch

    if pick_precision(cfg) == "32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)  # copies would be kept until the end of it


def precision_suffix(cfg: DictConfig) -> str:
    """What sets apart the files of what was computed in another precision than float32."""
    precision = pick_precision(cfg)
    return "" if precision == "32" else f"-{precision}"
