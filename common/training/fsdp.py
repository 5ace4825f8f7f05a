"""Weights of which each process holds a part, for networks that are too large for one device (FSDP2: fully_shard)."""

from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

SHARDED_MODULES = (
    BasicTransformerBlock,
    Transformer2DModel,
    ResnetBlock2D,
)  # gathered together for one pass


def shard(network: nn.Module, mesh: Any) -> None:
    """Leaves each process of `mesh` its part of every weight of a denoiser; in place, the inner units first."""
    from torch.distributed.fsdp import fully_shard

    for unit in reversed([module for module in network.modules() if isinstance(module, SHARDED_MODULES)]):
        fully_shard(unit, mesh=mesh)
    fully_shard(network, mesh=mesh)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor on every process; all of them must call this."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shared_like(tensor: torch.Tensor, sharded: torch.Tensor) -> torch.Tensor:
    """This process's part of a full tensor, cut as `sharded` is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    return distribute_tensor(tensor, sharded.device_mesh, sharded.placements) if isinstance(sharded, DTensor) else tensor


def gather_into(network: nn.Module, sharded: nn.Module) -> None:
    """Copies the weights and buffers of `sharded` to `network`, its twin that is whole."""
    network.load_state_dict({name: whole(value).to("cpu") for name, value in sharded.state_dict().items()})
