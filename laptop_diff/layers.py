"""The removable layers of a U-Net: ResNet blocks and transformer blocks (LAPTOP-Diff, arXiv 2404.11098)."""

from collections.abc import Sequence
from dataclasses import dataclass

from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from common.errors import InputError
from common.plans import Edit

GRANULARITIES = {"transformer": Transformer2DModel, "transformer_block": BasicTransformerBlock}
WIDTH_CHANGING = ("shortcut", "keep")
BLOCKS = ("down_blocks", "mid_block", "up_blocks")


@dataclass(frozen=True)
class Layer:
    """A removable layer: its path, its kind, what removes it, and how many parameters go with it."""

    site: str
    kind: str
    edit: Edit
    parameters: int


def list_layers(
    unet: nn.Module,
    granularity: str = "transformer",
    width_changing: str = "shortcut",
    exclude: Sequence[str] = (),
) -> list[Layer]:
    """All ResNet blocks and transformers in the order of computation of the stages; works on the meta device.

    granularity: "transformer" takes a Transformer2DModel as one layer (SDXL: 28 layers), "transformer_block" each
    BasicTransformerBlock in it (SDXL: 87). In a UNet2DModel the attention blocks take the place of transformers.
    width_changing: what is done with a ResNet block whose output is wider or narrower than its input. "shortcut" removes its
    residual branch and keeps the shortcut convolution; "keep" leaves it out of the list. Others become the identity.
    exclude: shell patterns over module paths. InputError for an unknown option or a pattern that matches nothing.
    """
    import fnmatch

    if granularity not in GRANULARITIES:
        raise InputError(f"method.granularity={granularity!r} is none of {', '.join(GRANULARITIES)}.")
    if width_changing not in WIDTH_CHANGING:
        raise InputError(f"method.width_changing={width_changing!r} is none of {', '.join(WIDTH_CHANGING)}.")
    layers = []
    for stage in BLOCKS:
        block = getattr(unet, stage, None)
        for name, module in block.named_modules(prefix=stage) if block is not None else ():
            layer = _layer(name, module, GRANULARITIES[granularity], width_changing)
            if layer is not None:
                layers.append(layer)
    for pattern in exclude:
        if not any(fnmatch.fnmatch(layer.site, pattern) for layer in layers):
            raise InputError(f"exclude pattern {pattern!r} matches no layer; paths look like {layers[0].site!r}.")
    return [layer for layer in layers if not any(fnmatch.fnmatch(layer.site, pattern) for pattern in exclude)]


def _layer(site: str, module: nn.Module, transformer: type, width_changing: str) -> Layer | None:
    parameters = sum(parameter.numel() for parameter in module.parameters())
    if isinstance(module, ResnetBlock2D):
        if module.in_channels == module.out_channels:
            return Layer(site, "resnet", Edit(site, "identity"), parameters)
        if width_changing == "keep":
            return None
        kept = sum(parameter.numel() for parameter in module.conv_shortcut.parameters())
        return Layer(site, "resnet", Edit(site, "shortcut"), parameters - kept)
    if isinstance(module, transformer):
        return Layer(site, "transformer", Edit(site, "identity"), parameters)
    if isinstance(module, Attention) and site.rpartition(".")[0].endswith("attentions"):
        return Layer(site, "attention", Edit(site, "identity"), parameters)  # UNet2DModel: the residual is inside
    return None
