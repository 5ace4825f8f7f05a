"""Denoisers of diffusers that carry their pruning plan in their own config.json and rebuild themselves from it.

This file stands alone: it imports torch and diffusers only, and is copied beside the weights of an exported student, so
that diffusers loads the student with trust_remote_code=True where this project is not installed.

PrunedX is diffusers' class X with a plan in its configuration: PrunedUNet2DConditionModel, PrunedPixArtTransformer2DModel.

A plan is a list of edits; an edit is a dictionary with a `site` (a module path in the unpruned network), an `operation` and
the sizes that the operation needs:

    identity                        the module's input goes on unchanged
    skip     returns                a block's inputs of these names go on unchanged, in the order in which it returns them
    linear   returns, maps          the same, with a linear map of it added to each input that `maps` gives a width
    zero                            the module's output is zero: the residual branch around it vanishes
    shortcut                        a ResNet block, or an attention that adds its own input, loses its residual branch and
                                    keeps its shortcut (1x1 or identity) and its divisor
    conv1x1  in, out, bias          a 1x1 convolution takes the place of a wider module
    avg_pool stride                 average pooling takes the place of a strided module
    upsample scale                  nearest upsampling takes the place of an upsampling module
    resize   in, out                the same convolution or linear map with fewer channels
    resize   channels               the same norm, up- or downsampler for fewer channels (of a sampler its layers apart)
"""

import copy
import inspect
import json
import os
import shutil
from collections.abc import Sequence
from typing import Any

import diffusers
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers' pipeline loader looks the name up here
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch.nn import functional as F

try:
    from diffusers.hooks._helpers import TransformerBlockRegistry
except ImportError:  # of a version without caches
    TransformerBlockRegistry = None  # type: ignore[assignment,misc]


class Identity(nn.Module):
    """Returns its first argument, whatever the others; as a tuple where the replaced module returned one."""

    def __init__(self, as_tuple: bool = False):
        super().__init__()
        self.as_tuple = as_tuple

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return (hidden_states,) if self.as_tuple else hidden_states


class Skip(nn.Module):
    """Returns those of a block's arguments that the block would have changed, however it is called.

    signature: of the block's forward pass. returns: names of its arguments; a single one is returned by itself.
    """

    def __init__(self, signature: inspect.Signature, returns: Sequence[str]):
        super().__init__()
        self.signature, self.returns = signature, tuple(returns)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = self.signature.bind(*args, **kwargs).arguments
        found = tuple(given[name] for name in self.returns)
        return found if len(found) > 1 else found[0]


class LinearMaps(Skip):
    """Adds to a block's arguments a linear map of each; maps: their widths by name, of those that get one."""

    def __init__(self, signature: inspect.Signature, returns: Sequence[str], maps: dict[str, int]):
        super().__init__(signature, returns)
        self.mapped = tuple(maps)
        for name, width in maps.items():
            self.register_parameter(f"{name}_weight", nn.Parameter(torch.zeros(width, width)))
            self.register_parameter(f"{name}_bias", nn.Parameter(torch.zeros(width)))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = self.signature.bind(*args, **kwargs).arguments
        found = tuple(self.changed(name, given[name]) for name in self.returns)
        return found if len(found) > 1 else found[0]

    def changed(self, name: str, stream: torch.Tensor) -> torch.Tensor:
        if name not in self.mapped:
            return stream
        return stream + F.linear(stream, getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias"))


class Zero(nn.Module):
    """Returns zeros like its first argument; with `joint`, and text beside it, zeros like both.

    joint: the attention that it stands for gave both streams, image and text, something of their own.
    """

    def __init__(self, joint: bool = False):
        super().__init__()
        self.joint = joint

    def forward(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        nothing = torch.zeros_like(hidden_states)
        if self.joint and encoder_hidden_states is not None:
            return nothing, torch.zeros_like(encoder_hidden_states)
        return nothing


class Shortcut(nn.Module):
    """What is left of a ResNet block, or of an attention with its own residual: (shortcut of its input) / its divisor."""

    def __init__(self, conv_shortcut: nn.Module | None, output_scale_factor: float):
        super().__init__()
        self.conv_shortcut = conv_shortcut
        self.output_scale_factor = output_scale_factor

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.conv_shortcut is not None:
            hidden_states = self.conv_shortcut(hidden_states)
        return hidden_states / self.output_scale_factor


class Conv1x1(nn.Conv2d):
    """A 1x1 convolution that ignores the further arguments of the module it replaces."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool):
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return super().forward(input)


class AveragePool(nn.Module):
    """Average pooling with kernel = stride; a last odd row or column is pooled alone, as a strided convolution keeps it."""

    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return F.avg_pool2d(hidden_states, self.stride, ceil_mode=True)


class NearestUpsample(nn.Module):
    """Nearest upsampling by `scale`, or to the size that the U-Net asks for."""

    def __init__(self, scale: int):
        super().__init__()
        self.scale = scale

    def forward(
        self, hidden_states: torch.Tensor, output_size: tuple[int, int] | None = None, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        if output_size is not None:
            return F.interpolate(hidden_states, size=output_size, mode="nearest")
        return F.interpolate(hidden_states, scale_factor=float(self.scale), mode="nearest")


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The modules of a network's lists in their order, as diffusers' caches go through them."""
    return [block for child in network.children() if isinstance(child, nn.ModuleList) for block in child]


def known_to_caches(network: nn.Module) -> None:
    """Lets diffusers' caches (FirstBlockCache, MagCache) take what stands for removed blocks as they take the blocks.

    They look up a block's class. What stands for the first block stays unknown to them: they judge by what that one changes.
    """
    for block in blocks_of(network)[1:]:
        kind = getattr(block, "stands_for", None)
        if kind is not None:
            block.__class__ = stand_in(type(block), kind)


def stand_in(base: Any, kind: type) -> type:
    """A subclass of a replacement's class that is registered as the block's class is; `base` where that one is not."""
    if TransformerBlockRegistry is None or (base, kind) in _STAND_INS:
        return _STAND_INS.get((base, kind), base)
    try:
        known = TransformerBlockRegistry.get(kind)
    except ValueError:
        return base

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return base.forward(self, *args, **kwargs)

    forward.__signature__ = inspect.signature(kind.forward)  # type: ignore[attr-defined]
    found = type(f"{base.__name__}Of{kind.__name__}", (base,), {"forward": forward, "__module__": __name__})
    TransformerBlockRegistry.register(found, copy.copy(known))  # which tells the copy its class
    _STAND_INS[base, kind] = found
    return found


JUDGE_BY_THE_FIRST = ("FirstBlockCacheConfig", "MagCacheConfig")
_STAND_INS: dict[tuple[type, type], type] = {}
READ_ON_BLOCKS = ("context_pre_only",)  # what diffusers' networks read on their blocks besides calling them
REPLACEMENTS = (Identity, Skip, Zero, Shortcut, Conv1x1, AveragePool, NearestUpsample)


def build_replacement(module: nn.Module, edit: dict[str, Any]) -> nn.Module:
    """The module that stands at edit["site"] after the edit, on the device and in the type of `module`'s weights."""
    operation = edit["operation"]
    if operation in ("identity", "skip", "linear"):
        passing: nn.Module = Identity(as_tuple=isinstance(module, Transformer2DModel))
        if operation == "skip":
            passing = Skip(inspect.signature(module.forward), edit["returns"])
        if operation == "linear":
            weight = next(module.parameters())
            passing = LinearMaps(inspect.signature(module.forward), edit["returns"], edit["maps"]).to(
                weight.device, weight.dtype
            )
        for name in READ_ON_BLOCKS:
            if hasattr(module, name):
                setattr(passing, name, getattr(module, name))
        passing.stands_for = type(module)  # type: ignore[assignment]
        return passing
    if operation == "zero":
        return Zero(joint=getattr(module, "add_k_proj", None) is not None)
    if operation == "shortcut":
        if isinstance(module, Attention) and module.residual_connection:
            return Shortcut(None, module.rescale_output_factor)
        if not isinstance(module, ResnetBlock2D):
            raise ValueError(f"{edit['site']}: 'shortcut' is for what adds its own input, this is a {type(module).__name__}.")
        return Shortcut(module.conv_shortcut, module.output_scale_factor)
    if operation == "conv1x1":
        weight = next(module.parameters())
        return Conv1x1(edit["in"], edit["out"], edit["bias"]).to(weight.device, weight.dtype)
    if operation == "avg_pool":
        return AveragePool(edit["stride"])
    if operation == "upsample":
        return NearestUpsample(edit["scale"])
    if operation == "resize":
        return resized(module, edit)
    raise ValueError(f"{edit['site']}: unknown operation {operation!r}.")


def resized(module: nn.Module, edit: dict[str, Any]) -> nn.Module:
    """A new layer like `module` for the channels that `edit` tells; a sampler keeps the very layers it holds."""
    if isinstance(module, Downsample2D | Upsample2D):
        sampler = copy.copy(module)
        sampler._modules = dict(module._modules)  # else an edit inside the copy would reach the original
        sampler.channels = edit["channels"]
        return sampler
    twin: nn.Module
    if isinstance(module, Conv1x1):
        twin = Conv1x1(edit["in"], edit["out"], module.bias is not None)
    elif isinstance(module, nn.Conv2d):
        names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
        form = {name: getattr(module, name) for name in names}
        twin = nn.Conv2d(edit["in"], edit["out"], bias=module.bias is not None, **form)
    elif isinstance(module, nn.Linear):
        twin = nn.Linear(edit["in"], edit["out"], module.bias is not None)
    elif isinstance(module, nn.GroupNorm):
        twin = nn.GroupNorm(module.num_groups, edit["channels"], module.eps, module.affine)
    elif isinstance(module, nn.LayerNorm):
        twin = nn.LayerNorm(edit["channels"], module.eps, module.elementwise_affine, module.bias is not None)
    else:
        raise ValueError(f"{edit['site']}: 'resize' does not know a {type(module).__name__}.")
    return twin.to(module.weight.device, module.weight.dtype)


def set_module(network: nn.Module, path: str, module: nn.Module) -> None:
    """Puts `module` at `path`; a path through a list of modules ("resnets.1") works as well."""
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, module.train(network.training))


def apply_edits(network: nn.Module, edits: list[dict[str, Any]]) -> None:
    """Applies the edits in place, in order; a site inside one that is already gone is left alone."""
    gone: list[str] = []
    for edit in edits:
        site = edit["site"]
        if any(site.startswith(f"{ancestor}.") for ancestor in gone):
            continue
        set_module(network, site, build_replacement(network.get_submodule(site), edit))
        gone.append(site)


def _with_plan(base: Any) -> type:
    """A subclass of a denoiser's class whose configuration has one more entry, `plan`."""

    class Pruned(base):
        def __init__(self, plan: dict[str, Any] | None = None, auto_map: dict[str, str] | None = None, **settings: Any):
            super().__init__(**settings)
            plan = json.loads(json.dumps(plan or {"edits": []}))  # a copy in JSON's own types
            self.register_to_config(plan=plan, auto_map={"AutoModel": f"pruned_denoiser.{type(self).__name__}"})
            apply_edits(self, plan["edits"])
            known_to_caches(self)

        def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
            """As diffusers', with this file beside the weights (for trust_remote_code)."""
            super().save_pretrained(save_directory, *args, **kwargs)
            target = os.path.join(save_directory, "pruned_denoiser.py")
            if os.path.abspath(__file__) != os.path.abspath(target):
                shutil.copyfile(__file__, target)

        if hasattr(base, "enable_cache"):

            def enable_cache(self, config: Any) -> None:
                """As diffusers'; ValueError for caches that judge by a first block which is not there."""
                if type(config).__name__ in JUDGE_BY_THE_FIRST and hasattr(blocks_of(self)[0], "stands_for"):
                    raise ValueError(
                        f"{type(config).__name__} judges by what the first block changes, and the plan removes that one: "
                        "keep it (exclude), or use the stock class with fewer blocks."
                    )
                super().enable_cache(config)

    # diffusers reads the accepted configuration keys off the signature
    known = [p for p in inspect.signature(base.__init__).parameters.values() if p.name != "self"]
    init: Any = Pruned.__init__
    own = [p for p in inspect.signature(init).parameters.values() if p.kind is not p.VAR_KEYWORD]
    init.__signature__ = inspect.Signature([*own, *known])
    Pruned.__name__ = Pruned.__qualname__ = f"Pruned{base.__name__}"
    Pruned.__module__ = __name__
    Pruned.__doc__ = f"diffusers' {base.__name__} with a pruning plan in its configuration."
    return Pruned


def pruned_class(base: type) -> type:
    """The class PrunedX of a denoiser's class X."""
    name = f"Pruned{base.__name__}"
    if name not in _CLASSES:
        _CLASSES[name] = _with_plan(base)
    return _CLASSES[name]


def __getattr__(name: str) -> type:
    """PrunedX for each class X of diffusers: what a folder's index and `auto_map` name."""
    base = getattr(diffusers, name.removeprefix("Pruned"), None) if name.startswith("Pruned") else None
    if base is None:
        raise AttributeError(f"{__name__} has no {name}; it knows Pruned and a denoiser's class of diffusers.")
    return pruned_class(base)


_CLASSES: dict[str, type] = {}
