"""First weights of the 1x1 convolutions that take the place of wider operators; the paper leaves them open."""

from collections.abc import Callable
from typing import Any, Literal, get_args
from zlib import crc32

import torch
from torch import nn

from common.denoisers.denoiser import Conditions
from common.diffusion.sampling import predict
from common.errors import InputError
from common.runtime.seeding import generator_for
from ld_pruner.operators import Operator

Batch = tuple[tuple[torch.Tensor, torch.Tensor], Conditions]
Initial = Literal["random", "identity", "slice", "least_squares"]
CHOICES = get_args(Initial)


def initial_weights(
    unet: nn.Module, operators: list[Operator], choice: str, batch: Callable[[], Batch], seed: int
) -> dict[str, torch.Tensor]:
    """Tensors named "<site>.weight" (out, in, 1, 1) and "<site>.bias" (out,) for every operator replaced by a 1x1.

    random: uniform in +-1/sqrt(in) (PyTorch's default for convolutions). identity: output channel i copies input channel
    i modulo in. slice: the centre tap of the old kernel (a ResNet block: its own 1x1 shortcut, divided as the block divides).
    least_squares: the linear map that fits the operator's outputs best on batch(), (latents, timesteps) and conditions of one
    forward pass.
    """
    if choice not in CHOICES:
        raise InputError(f"initial_weights={choice!r} is none of {', '.join(CHOICES)}.")
    wanted = [operator for operator in operators if operator.edit.operation == "conv1x1"]
    if choice == "least_squares":
        return _least_squares(unet, wanted, batch())
    tensors = {}
    for operator in wanted:
        sizes = operator.edit.sizes
        module = unet.get_submodule(operator.site)
        like = next(module.parameters())
        bias = torch.zeros(sizes["out"], dtype=like.dtype, device=like.device)
        if choice == "random":
            bound = sizes["in"] ** -0.5
            weight = (
                torch.rand(sizes["out"], sizes["in"], generator=generator_for(seed, crc32(operator.site.encode()))) * 2 * bound
                - bound
            )
        elif choice == "identity":
            weight = torch.eye(sizes["in"])[torch.arange(sizes["out"]) % sizes["in"]]
        else:
            old: Any = module.conv_shortcut if hasattr(module, "conv_shortcut") else module
            weight = old.weight[:, :, old.weight.shape[2] // 2, old.weight.shape[3] // 2].detach().clone()
            bias = bias if old.bias is None else old.bias.detach().clone()
            divisor = getattr(module, "output_scale_factor", 1)
            weight, bias = weight / divisor, bias / divisor
        tensors[f"{operator.site}.weight"] = weight.to(like)[:, :, None, None].contiguous()
        tensors[f"{operator.site}.bias"] = bias
    return tensors


@torch.no_grad()
def _least_squares(unet: nn.Module, operators: list[Operator], batch: Batch) -> dict[str, torch.Tensor]:
    """Ridge-stabilised normal equations over all pixels of the batch, in float64."""
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def hook_for(site: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            source = inputs[0].movedim(1, -1).flatten(0, -2).double()
            source = torch.cat([source, source.new_ones(len(source), 1)], 1)
            seen[site] = (source.T @ source, source.T @ output.movedim(1, -1).flatten(0, -2).double())

        return hook

    handles = [unet.get_submodule(o.site).register_forward_hook(hook_for(o.site)) for o in operators]
    try:
        predict(unet, *batch[0], batch[1])
    finally:
        for handle in handles:
            handle.remove()
    tensors = {}
    for operator in operators:
        gram, product = seen.pop(operator.site)
        ridge = 1e-4 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        solution = torch.linalg.solve(gram + ridge, product)
        like = next(unet.get_submodule(operator.site).parameters())
        tensors[f"{operator.site}.weight"] = solution[:-1].T.to(like)[:, :, None, None].contiguous()
        tensors[f"{operator.site}.bias"] = solution[-1].to(like).contiguous()
    return tensors
