"""How much memory a step takes, found on the meta device: every tensor that it makes is counted while it lives.

On a GPU most memory of a training step is what the forward pass keeps for the backward pass. Nothing is computed here, so
full-size networks take seconds on a laptop. Three things differ from an ordinary run on the meta device, because a GPU differs:

    attention       a fused kernel, which keeps queries, keys, values, its output and one number a row, not the products
    mixed precision autocast for CUDA, which does nothing where there is none: matrix products take half precision copies,
                    norms and softmax single precision ones
    gradients       of parameters are dropped as they come: what they take is known without counting
"""

import weakref
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint

HALF = (F.conv2d, F.linear, torch.matmul, torch.Tensor.matmul, torch.bmm, torch.baddbmm, F.scaled_dot_product_attention)
SINGLE = (F.group_norm, F.layer_norm, F.softmax, torch.softmax, torch.Tensor.softmax, F.mse_loss)


class FusedAttention(torch.autograd.Function):
    """What a fused attention kernel keeps, without its result: queries, keys, values, output, and a number for each row."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


class LikeCuda(TorchFunctionMode):
    """Fused attention and, with `mixed`, the casts of CUDA's autocast (PyTorch's list), each weight's copy made once."""

    def __init__(self, mixed: bool):
        super().__init__()
        self.mixed = mixed
        self.copies: dict[nn.Parameter, torch.Tensor] = {}

    def cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if not (isinstance(value, nn.Parameter) and value.requires_grad):
            return value.to(dtype)
        if value not in self.copies:
            self.copies[value] = value.to(dtype)
        return self.copies[value]

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.mixed and (function in HALF or function in SINGLE):
            dtype = torch.float16 if function in HALF else torch.float32
            args, kwargs = tree_map(lambda value: self.cast(value, dtype), (args, kwargs))
        if function is F.scaled_dot_product_attention:
            return FusedAttention.apply(*args[:3]) if len(args) > 2 else FusedAttention.apply(*list(kwargs.values())[:3])
        return function(*args, **kwargs)


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors made inside that are alive: `now`, and at most so far, `peak`. Those of `known` do not count."""

    def __init__(self, known: Iterable[torch.Tensor]):
        super().__init__()
        self.seen = weakref.WeakSet(tensor.untyped_storage() for tensor in known)
        self.now = self.peak = 0

    def free(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage not in self.seen:
                    self.seen.add(storage)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self.free, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result


def step_bytes(
    network: nn.Module, loss: Callable[[], torch.Tensor], mixed: bool, checkpointing: bool, others: Iterable[nn.Module] = ()
) -> int:
    """The most bytes that live at once in loss() and its gradients, besides all parameters and their gradients.

    network: what is trained, a diffusers model on the meta device, where `loss` has its inputs too; others: further networks
    in the loss. mixed: half precision by autocast. checkpointing: gradient checkpointing, where the model's blocks have it.
    """
    network.train().requires_grad_(True)
    hooks = [parameter.register_post_accumulate_grad_hook(forget_gradient) for parameter in network.parameters()]
    if checkpointing:
        again = partial(checkpoint, use_reentrant=False, context_fn=lambda: (nullcontext(), LikeCuda(mixed)))
        network.enable_gradient_checkpointing(again)
    try:
        with LiveBytes(tensors_of(network, *others)) as live:
            with LikeCuda(mixed):
                value = loss()
            value.backward()
    finally:
        for hook in hooks:
            hook.remove()
        if checkpointing:
            network.disable_gradient_checkpointing()
        network.eval().requires_grad_(False)
    return live.peak


@torch.no_grad()
def forward_bytes(network: nn.Module, call: Callable[[], Any], mixed: bool = False) -> int:
    """The most bytes that live at once in call(), without gradients, besides network's parameters; mixed: by autocast."""
    with LiveBytes(tensors_of(network)) as live, LikeCuda(mixed):
        call()
    return live.peak


def tensors_of(*networks: nn.Module) -> list[torch.Tensor]:
    return [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]


def forget_gradient(parameter: nn.Parameter) -> None:
    parameter.grad = None
