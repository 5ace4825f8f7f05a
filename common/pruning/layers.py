"""The removable layers of a denoiser, their sizes, and two scores that need no data.

Of a U-Net these are ResNet blocks and transformers, of a diffusion transformer its blocks, or their halves: attention and
feed-forward. What is left of a module that is removed follows from where its residual is added, inside it or by its caller:
`removal`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal, get_args
from zlib import crc32

import torch
from torch import nn

from common.cost.macs import count_parameters, site_costs
from common.denoisers.denoiser import Block, architecture_of
from common.denoisers.module_kinds import ATTENTION, FEED_FORWARD, RESNET, TRANSFORMER, TRANSFORMER_BLOCK, is_kind
from common.errors import InputError
from common.pruning.plan import Edit
from common.runtime.seeding import generator_for

Granularity = Literal["transformer", "transformer_block", "half_block"]
GRANULARITIES = get_args(Granularity)
WidthChanging = Literal["shortcut", "keep"]
WIDTH_CHANGING = get_args(WidthChanging)
FEED_FORWARDS = ("GLUMBConv",)  # Sana's; others have it in their name
BLOCKS = ("down_blocks", "mid_block", "up_blocks")
SizeUnit = Literal["parameters", "macs", "milliseconds"]


@dataclass(frozen=True)
class Layer:
    """A removable layer: its path, its kind, what removes it, and how many parameters go with it."""

    site: str
    kind: str
    edit: Edit
    parameters: int


def removal(module: Any) -> str:
    """The operation (common.pruning.pruned_denoiser) that removes what `module` computes and keeps what would pass it by.

    "identity" where the module adds its input to what it computes, "shortcut" where it also divides the sum, or has a
    convolution on that way; "zero" for attention and feed-forward to which the module around them adds the input.
    """
    if is_kind(module, RESNET):
        return "identity" if module.conv_shortcut is None and module.output_scale_factor == 1 else "shortcut"
    if is_kind(module, ATTENTION):
        from diffusers.models.attention_processor import ADDED_KV_ATTENTION_PROCESSORS

        if isinstance(module.processor, ADDED_KV_ATTENTION_PROCESSORS):
            return "identity"  # these add the input whatever residual_connection says, and divide by nothing
        if module.residual_connection:
            return "identity" if module.rescale_output_factor == 1 else "shortcut"
        return "zero"
    return "zero" if is_kind(module, FEED_FORWARD) else "identity"


def list_layers(
    denoiser: nn.Module,
    granularity: str = "transformer",
    width_changing: str = "shortcut",
    exclude: Sequence[str] = (),
) -> list[Layer]:
    """All removable layers in the order of computation of the stages; works on the meta device.

    granularity: "transformer" takes a Transformer2DModel as one layer (SDXL: 28 layers), "transformer_block" each
    BasicTransformerBlock in it (SDXL: 87), "half_block" each attention and feed-forward in those. In a UNet2DModel the
    attention blocks take the place of transformers. Of a diffusion transformer the first two are its blocks.
    width_changing: what is done with a ResNet block whose output is wider or narrower than its input. "shortcut" removes its
    residual branch and keeps the shortcut convolution; "keep" leaves it out of the list. Others become the identity.
    exclude: shell patterns over module paths. InputError for an unknown option or a pattern that matches nothing.
    """
    if granularity not in GRANULARITIES:
        raise InputError(f"method.granularity={granularity!r} is none of {', '.join(GRANULARITIES)}.")
    if width_changing not in WIDTH_CHANGING:
        raise InputError(f"method.width_changing={width_changing!r} is none of {', '.join(WIDTH_CHANGING)}.")
    blocks = dict(architecture_of(denoiser).blocks(denoiser))
    layers = block_layers(blocks, granularity) if blocks else unet_layers(denoiser, granularity, width_changing)
    for pattern in exclude:
        if not any(fnmatch(layer.site, pattern) for layer in layers):
            example = f"; paths look like {layers[0].site!r}" if layers else " of this denoiser, which has none"
            raise InputError(f"exclude pattern {pattern!r} matches no layer{example}.")
    return [layer for layer in layers if not any(fnmatch(layer.site, pattern) for pattern in exclude)]


def block_layers(blocks: dict[str, Block], granularity: str) -> list[Layer]:
    """The layers of a diffusion transformer: its blocks, or what halves they have."""
    if granularity != "half_block":
        whole = {site: block for site, block in blocks.items() if block.removable}
        return [
            Layer(site, "block", Edit(site, *passed_on(each.streams)), count_parameters(each.module))
            for site, each in whole.items()
        ]
    return [half for site, block in blocks.items() for half in halves(site, block.module)]


def passed_on(streams: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The operation that lets a block's streams pass, and its sizes."""
    return ("identity", {}) if tuple(streams) == ("hidden_states",) else ("skip", {"returns": list(streams)})


def halves(site: str, block: nn.Module) -> list[Layer]:
    """Attention and feed-forward parts of a transformer block, which adds what they compute to its streams."""
    found = []
    for name, module in block.named_children():
        kind = half_kind(module)
        if kind is not None:
            path = f"{site}.{name}"
            found.append(Layer(path, kind, Edit(path, "zero"), count_parameters(module)))
    return found


def half_kind(module: Any) -> str | None:
    """ "attention", "feed_forward", or None for what is neither: norms, projections that others share."""
    if hasattr(module, "to_out") and hasattr(module, "to_q"):
        return "attention"
    named = type(module).__name__
    return "feed_forward" if "FeedForward" in named or named in FEED_FORWARDS else None


def unet_layers(unet: nn.Module, granularity: str, width_changing: str) -> list[Layer]:
    """ResNet blocks, and transformers, their blocks or their halves."""
    layers = []
    for stage in BLOCKS:
        block = getattr(unet, stage, None)
        for name, module in block.named_modules(prefix=stage) if block is not None else ():
            if granularity == "half_block" and is_kind(module, TRANSFORMER_BLOCK):
                layers += halves(name, module)
                continue
            layer = _layer(name, module, TRANSFORMER if granularity == "transformer" else TRANSFORMER_BLOCK, width_changing)
            if layer is not None and not (granularity == "half_block" and layer.kind == "transformer"):
                layers.append(layer)
    return layers


def _layer(site: str, module: Any, transformer: str, width_changing: str) -> Layer | None:
    parameters = count_parameters(module)
    if is_kind(module, RESNET):
        if module.up or module.down:
            return None  # a sampler in the form of a ResNet block
        if module.in_channels != module.out_channels and width_changing == "keep":
            return None
        kept = 0 if module.conv_shortcut is None else count_parameters(module.conv_shortcut)
        return Layer(site, "resnet", Edit(site, removal(module)), parameters - kept)
    if is_kind(module, transformer):
        return Layer(site, "transformer", Edit(site, "identity"), parameters)
    if is_kind(module, ATTENTION) and site.rpartition(".")[0].endswith("attentions"):
        return Layer(site, "attention", Edit(site, removal(module)), parameters)  # UNet2DModel: the residual is inside
    return None


def layer_sizes(
    unet: nn.Module,
    layers: Sequence[Layer],
    unit: str,
    folder: Path | None = None,
    teacher: str = "",
    conditions: dict[str, torch.Tensor] | None = None,
) -> tuple[list[float], float]:
    """What removing each layer saves, and the whole U-Net, in `unit`.

    unit: "parameters", "macs" (one sample, with attention products) or "milliseconds" (measured once and kept in `folder` for
    `teacher`: common.cost.macs.kept_milliseconds). conditions: one row of the denoiser's conditions, for how many tokens there
    are.
    """
    if unit == "parameters":
        return [layer.parameters for layer in layers], count_parameters(unet)
    kept = {
        layer.site: f"{layer.site}.conv_shortcut"
        for layer in layers
        if layer.edit.operation == "shortcut" and getattr(unet.get_submodule(layer.site), "conv_shortcut", None) is not None
    }
    sites = ["", *(layer.site for layer in layers), *kept.values()]
    found = site_costs(unet, sites, unit, folder, teacher, conditions)
    staying = {site: found[shortcut] for site, shortcut in kept.items()}
    return [max(0.0, found[layer.site] - staying.get(layer.site, 0.0)) for layer in layers], found[""]


@torch.no_grad()
def mean_magnitude(module: nn.Module) -> float:
    """Mean absolute value over the weights of all convolutions and linear maps in `module`."""
    weights = [part.weight for part in module.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    return (sum(weight.abs().sum().item() for weight in weights)) / sum(weight.numel() for weight in weights)


def random_scores(layers: Sequence[Layer], seed: int) -> dict[str, float]:
    """A uniform number for each layer, seeded by `seed` and its site."""
    draws = {layer.site: generator_for(seed, crc32(layer.site.encode())) for layer in layers}
    return {site: torch.rand((), generator=generator).item() for site, generator in draws.items()}
