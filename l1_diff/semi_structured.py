"""2:4 weights in the form that NVIDIA's sparse tensor cores multiply (torch.sparse, compute capability 8.0 and above)."""

import torch
from torch import nn

from common.errors import InputError


def is_two_of_four(weight: torch.Tensor) -> bool:
    """Whether each group of 4 neighbours along the input dimension of (out, in) has at most 2 values that are not zero."""
    return weight.shape[1] % 4 == 0 and bool((weight.reshape(-1, 4).count_nonzero(1) <= 2).all())


def to_semi_structured(model: nn.Module) -> list[str]:
    """Turns the 2:4 Linear weights of `model`, in place, into semi-structured ones; returns their sites.

    For inference: float16 or bfloat16 weights on a GPU, which torch.sparse takes from 32 x 64 on in multiples of it. InputError
    without such a GPU, and when no weight fits.
    """
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        raise InputError("2:4 multiplication needs a CUDA GPU of compute capability 8.0 or above; there is none here.")
    converted = []
    for site, module in model.named_modules():
        if not isinstance(module, nn.Linear) or module.weight.dtype not in (torch.float16, torch.bfloat16):
            continue
        rows, columns = module.weight.shape
        if module.weight.is_cuda and rows % 32 == columns % 64 == 0 and is_two_of_four(module.weight):
            sparse = torch.sparse.to_sparse_semi_structured(module.weight.detach().contiguous())
            module.weight = nn.Parameter(sparse, requires_grad=False)
            converted.append(site)
    if not converted:
        raise InputError("No Linear weight is 2:4, fp16 or bf16, on the GPU and a multiple of 32 x 64; prune with pattern=2:4.")
    return converted
