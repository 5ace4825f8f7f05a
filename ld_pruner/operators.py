"""The operators of a U-Net and what takes the place of each (LD-Pruner, arXiv 2404.11936, section 2.2)."""

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from common.cost.macs import count_parameters, probe_inputs
from common.denoisers.denoiser import Block, architecture_of
from common.diffusion.sampling import predict
from common.errors import InputError
from common.pruning.layers import half_kind, passed_on, removal
from common.pruning.plan import Edit

KINDS = {
    "conv": ("Conv2d",),
    "attention": ("Attention",),
    "feed_forward": ("FeedForward",),
    "norm": ("GroupNorm", "LayerNorm"),
    "activation": ("SiLU", "ReLU", "GELU", "Mish"),
    "resnet": ("ResnetBlock2D",),
    "transformer_block": ("BasicTransformerBlock",),
    "transformer": ("Transformer2DModel",),
    "downsampler": ("Downsample2D",),
    "upsampler": ("Upsample2D",),
}
PAPER = "paper"  # all kinds: section 2.2 names convolutions, attention, norms, activations and what is composed of them
REPLACEMENTS = 2  # counts up when the rule of what replaces an operator changes: scores kept under another do not count
NEVER = ("conv_in", "conv_out", "time_proj", "time_embedding", "time_embed_act", "add_embedding", "encoder_hid_proj")


@dataclass(frozen=True)
class Operator:
    """A removable module: its path, its kind (a key of KINDS), what replaces it and how many parameters that saves."""

    site: str
    kind: str
    edit: Edit
    parameters_saved: int


@contextmanager
def _shapes(unet: nn.Module, sites: Sequence[str], into: dict[str, tuple[torch.Size, torch.Size]]) -> Iterator[None]:
    """Records (input shape, output shape) of the modules at `sites` during the forward passes inside."""

    def hook_for(site: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple, kwargs: dict, output: Any) -> None:
            results = output if isinstance(output, tuple) else (output,)
            shapes = [value.shape for value in (*inputs, *kwargs.values()) if isinstance(value, torch.Tensor)][:1]
            shapes += [value.shape for value in results if isinstance(value, torch.Tensor)][:1]
            into[site] = (shapes[0], shapes[-1])

        return hook

    handles = [unet.get_submodule(site).register_forward_hook(hook_for(site), with_kwargs=True) for site in sites]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def replacement_edit(site: str, module: nn.Module, source: torch.Size, result: torch.Size, residual: str) -> Edit | None:
    """The cheapest edit that keeps the shape, or None where there is none.

    Equal shapes: what the module would pass on without what it computes (common.pruning.layers.removal), or, when `residual` is
    "identity", its input; other channels: a 1x1 convolution; smaller maps: average pooling; larger maps: nearest upsampling.
    """
    if source == result:
        return Edit(site, removal(module) if residual == "zero" else "identity")
    if len(source) != 4 or len(result) != 4:
        return None
    if source[2:] == result[2:]:
        if getattr(module, "kernel_size", None) == (1, 1):
            return None  # it already is what would replace it
        return Edit(site, "conv1x1", {"in": source[1], "out": result[1], "bias": True})
    if source[1] != result[1]:
        return None
    if source[2] > result[2]:
        if -(-source[2] // round(source[2] / result[2])) != result[2]:
            return None  # a convolution on a map that was padded by hand: pooling would give another size
        return Edit(site, "avg_pool", {"stride": round(source[2] / result[2])})
    return Edit(site, "upsample", {"scale": round(result[2] / source[2])})


def _kept_parameters(module: nn.Module, edit: Edit) -> int:
    """How many parameters stand at the site after the edit."""
    if edit.operation == "conv1x1":
        return edit.sizes["in"] * edit.sizes["out"] + edit.sizes["out"]
    shortcut = getattr(module, "conv_shortcut", None)
    return count_parameters(shortcut) if edit.operation == "shortcut" and shortcut is not None else 0


def kind_in_transformer(site: str, module: nn.Module, blocks: Mapping[str, Block]) -> str | None:
    """The kind of a block of a diffusion transformer, and of the halves right inside it; None elsewhere."""
    if site in blocks:
        return "transformer_block"
    return half_kind(module) if site.rpartition(".")[0] in blocks else None


@torch.no_grad()
def list_operators(
    unet: nn.Module,
    kinds: Sequence[str] | str = PAPER,
    exclude: Sequence[str] = (),
    residual: str = "identity",
) -> list[Operator]:
    """All operators of the wanted kinds in the order of the module tree; works on the meta device.

    kinds: keys of KINDS, one of them, or "paper" for all. conv_in, conv_out, the time embedding and those 1x1 convolutions that
    are already what would replace them are never among the operators, nor what lies outside the blocks of a diffusion
    transformer. `exclude` holds shell patterns over module paths.
    residual: what an attention or feed-forward operator whose caller adds its input leaves behind: "identity" hands its input
    on (the paper's rule read literally), "zero" removes the branch; where the operator adds its input itself (attention of a
    UNet2DModel, ResNet blocks), that input is what is left.
    InputError for an unknown kind, and for a pattern that matches no operator.
    """
    wanted = tuple(KINDS) if kinds == PAPER else (kinds,) if isinstance(kinds, str) else tuple(kinds)
    unknown = [kind for kind in wanted if kind not in KINDS]
    if unknown:
        raise InputError(f"Unknown operator kind {unknown[0]!r}; the kinds are {', '.join(KINDS)}, or {PAPER!r} for all.")
    if residual not in ("identity", "zero"):
        raise InputError(f"residual={residual!r} is neither 'identity' nor 'zero'.")
    kind_of = {name: kind for kind in wanted for name in KINDS[kind]}
    blocks = dict(architecture_of(unet).blocks(unet))
    sites = {}
    for site, module in unet.named_modules():
        kind = kind_in_transformer(site, module, blocks) or kind_of.get(type(module).__name__)
        whole = site not in blocks or blocks[site].removable
        inside = not blocks or any(f"{site}.".startswith(f"{block}.") for block in blocks)
        if kind in wanted and whole and inside and site.split(".")[0] not in NEVER:
            sites[site] = kind
    shapes: dict[str, tuple[torch.Size, torch.Size]] = {}
    arguments, conditions = probe_inputs(unet)
    with _shapes(unet, list(sites), shapes):
        predict(unet, *arguments, conditions)
    operators = []
    for site, kind in sites.items():
        if site not in shapes:
            continue  # never called in the forward pass (an unused dropout or activation)
        module = unet.get_submodule(site)
        edit: Edit | None
        if site in blocks:
            edit = Edit(site, *passed_on(blocks[site].streams))
        elif blocks and getattr(module, "add_k_proj", None) is not None:  # attention of two streams, to which the block adds
            edit = Edit(site, "zero")
        else:
            edit = replacement_edit(site, module, *shapes[site], residual)
        if edit is not None:
            operators.append(Operator(site, kind, edit, count_parameters(module) - _kept_parameters(module, edit)))
    for pattern in exclude:
        if operators and not any(fnmatch.fnmatch(operator.site, pattern) for operator in operators):
            raise InputError(f"exclude pattern {pattern!r} matches no operator; paths look like {operators[0].site!r}.")
    return [operator for operator in operators if not any(fnmatch.fnmatch(operator.site, pattern) for pattern in exclude)]
