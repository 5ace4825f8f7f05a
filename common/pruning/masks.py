"""Plans that prune single weights: every edit is a "mask", and the student is of the teacher's own class.

A mask is a bool tensor of the weight's shape, True where the weight is kept; plan.tensors holds it as "<site>.mask".
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from common.errors import InputError

MASK = "mask"


def plan_masks(edits: Sequence, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The mask by site; InputError when edits of another kind stand beside masks, or a mask is missing."""
    masks = {}
    for edit in edits:
        if edit.operation != MASK:
            raise InputError(f"The plan mixes masks with {edit.operation!r} at {edit.site!r}; masks need a plan of their own.")
        if f"{edit.site}.{MASK}" not in tensors:
            raise InputError(f"The plan brings no mask for {edit.site!r}; load it with Plan.load.")
        masks[edit.site] = tensors[f"{edit.site}.{MASK}"]
    return masks


def masked_weight(network: nn.Module, site: str, mask: torch.Tensor) -> nn.Parameter:
    """The weight at `site`; InputError when there is none, or when the mask is not bool or of another shape."""
    try:
        module = network.get_submodule(site)
    except AttributeError as error:
        raise InputError(f"The plan masks {site!r}, which this {type(network).__name__} does not have.") from error
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter):
        raise InputError(f"The plan masks {site!r}, a {type(module).__name__} without a weight.")
    if mask.dtype != torch.bool or mask.shape != weight.shape:
        given, wanted = tuple(mask.shape), tuple(weight.shape)
        raise InputError(f"The mask of {site!r} is {mask.dtype} {given}; bool {wanted} is needed.")
    return weight


@torch.no_grad()
def apply_masks(network: nn.Module, masks: Mapping[str, torch.Tensor]) -> nn.Module:
    """Sets what the masks prune to +0.0, in place, and returns `network`; errors as masked_weight."""
    weights = {site: masked_weight(network, site, mask) for site, mask in masks.items()}
    for site, weight in weights.items():
        weight.masked_fill_(~masks[site].to(weight.device), 0)
    return network


def masked_copy(network: nn.Module, masks: Mapping[str, torch.Tensor]) -> nn.Module:
    """A copy of `network` with masked weights, in the same mode; `network` is not touched."""
    return apply_masks(copy.deepcopy(network), masks)


@contextmanager
def masked_weights(network: nn.Module, masks: Mapping[str, torch.Tensor]) -> Iterator[nn.Module]:
    """`network` with masked weights inside the context; afterwards its own weights are back, bit for bit."""
    weights = {site: masked_weight(network, site, mask) for site, mask in masks.items()}
    originals = {site: weight.data for site, weight in weights.items()}
    try:
        for site, weight in weights.items():
            weight.data = weight.data.masked_fill(~masks[site].to(weight.device), 0)
        yield network
    finally:
        for site, weight in weights.items():
            weight.data = originals[site]


def pack_bits(mask: torch.Tensor) -> torch.Tensor:
    """The bits of a bool tensor, eight to a byte: uint8 (ceil(n / 8),) on the CPU, the first one highest."""
    import numpy as np

    return torch.from_numpy(np.packbits(mask.detach().cpu().numpy().reshape(-1)))


def unpack_bits(packed: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """The inverse of pack_bits; ValueError when the number of bytes does not fit `shape`."""
    import numpy as np

    count = math.prod(shape)
    if packed.dtype != torch.uint8 or packed.numel() != (count + 7) // 8:
        raise ValueError(f"{packed.numel()} bytes of {packed.dtype} for {count} bits")
    return torch.from_numpy(np.unpackbits(packed.cpu().numpy().reshape(-1), count=count).astype(bool)).reshape(tuple(shape))
