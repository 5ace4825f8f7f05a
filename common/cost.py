"""Sizes and multiply-accumulates of a network."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one forward pass; published figures usually omit the attention products QK and AV."""

    total: int
    without_attention_products: int


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def to_meta(value: Any) -> Any:
    """Tensors on the meta device, in nested dictionaries and tuples."""
    if isinstance(value, torch.Tensor):
        return value.to("meta")
    if isinstance(value, dict):
        return {name: to_meta(item) for name, item in value.items()}
    return tuple(to_meta(item) for item in value) if isinstance(value, tuple | list) else value


def count_macs(denoiser: nn.Module, arguments: tuple, conditions: dict[str, Any]) -> Macs:
    """MACs of denoiser(*arguments, **conditions), counted on a twin on the meta device; half of PyTorch's FLOPs."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        twin = type(denoiser).from_config(denoiser.config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        twin(*to_meta(arguments), **to_meta(conditions))
    by_operation = counter.get_flop_counts()["Global"]
    products = sum(
        flops for operation, flops in by_operation.items() if "bmm" in str(operation) or "attention" in str(operation)
    )
    total = sum(by_operation.values())
    return Macs(total // 2, (total - products) // 2)


def checkpoint_bytes(module: nn.Module, dtype: torch.dtype = torch.float16) -> int:
    """Bytes of the parameters and buffers when saved in `dtype`."""
    return sum(tensor.numel() for tensor in module.state_dict().values()) * dtype.itemsize


def peak_memory_mib() -> float:
    """Largest memory so far: of the first CUDA device where there is one, else resident memory of this process."""
    import resource

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
