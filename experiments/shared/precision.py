"""The precision in which denoisers are scored and sampled; training has its own (distill.trainer.precision).

32 or "bf16"; not fp16: gradients that are scored would vanish without a scaled loss.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any


def inference_autocast(precision: int | str, device: Any) -> AbstractContextManager[Any]:
    """Matrix products and convolutions inside run in `precision`, from weights in float32 (torch.autocast)."""
    import torch

    if precision != "bf16":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)  # copies would be kept until the end of it


def precision_suffix(precision: int | str) -> str:
    """What sets apart the files of what was computed in another precision than float32."""
    return "-bf16" if precision == "bf16" else ""
