"""Structured channel pruning: channels that must go together are found and removed by the library torch-pruning.

A residual sum, a skip connection or a normalisation ties the channels of several layers together; torch-pruning traces the
network once and finds these groups (DepGraph, Fang et al., CVPR 2023, arXiv 2301.12900). Here is what a diffusion U-Net adds:

- GroupNorm keeps its number of groups, attention its number of heads: within every group or head the same positions go, by
  the importance averaged over groups or heads (as the pruner of the library does with its channel groups);
- halves of one layer that are multiplied or added to each other (GEGLU, scale and shift of the time embedding) go as pairs;
- what enters and leaves the network stays: its input and output channels, the width of conditions, embedding tables.

What is left is told by the sizes and the kept indices of every changed layer: neither the student nor its loader needs
torch-pruning.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, Literal, get_args

import torch
from torch import nn

from common.cost.macs import probe_inputs
from common.denoisers.module_kinds import ATTENTION, SAMPLERS, ZERO, is_kind
from common.denoisers.unet import keyword_arguments
from common.diffusion.sampling import predict
from common.errors import InputError, check_share, first_line
from common.pruning.plan import Edit

# torch-pruning's group of all channels that go together, the path of its first layer -> (channels,); None: leave it alone
Importance = Callable[[Any, str], torch.Tensor | None]
RESIZABLE = (nn.Conv2d, nn.Linear, nn.GroupNorm, nn.LayerNorm)
Rounding = Literal["down", "up"]


@dataclass(frozen=True)
class ChannelPruning:
    """What pruning has left: "resize" edits, the kept indices "<site>.out" and "<site>.in", and per group, by the path of its
    first layer, the share of its importance that went (groups that stay whole left out) and how many of its channels."""

    edits: tuple[Edit, ...]
    kept: dict[str, torch.Tensor]
    scores: dict[str, float]
    gone: dict[str, tuple[int, int]]

    @property
    def shares(self) -> tuple[float, float, float]:
        """The share of all channels that went, and the least and the largest of a group."""
        each = [gone / count for gone, count in self.gone.values()]
        gone, count = (sum(numbers) for numbers in zip(*self.gone.values(), strict=True))
        return gone / count, min(each), max(each)


def prune_channels(
    unet: nn.Module,
    ratio: float,
    importance: Importance,
    exclude: Sequence[str] = (),
    rounding: Rounding = "down",
    round_to: int = 1,
) -> ChannelPruning:
    """Removes a share `ratio` of the channels of every group of `unet`, in place, those of least importance; of n channels
    n - floor(n * (1 - ratio)), at most n - 1.

    A norm's groups and an attention's heads must stay equally wide. Of channels in p such parts, rounding="down" removes
    floor((n - floor(n * (1 - ratio))) / p) of each part, as torch-pruning did when Diff-Pruning was published (to 1.2);
    "up" applies the rule above to a part alone, as torch-pruning does now. Of 32 groups of 4, a ratio of 0.3 takes 25 or 50 %.

    round_to: what is left of a group is rounded up to a multiple of it, such as 8 or 16, which suits matrix units; a group of
    which then none would go stays whole. exclude: shell patterns over module paths; a group that would make an output of such a
    module narrower stays whole. Nothing goes where all groups are excluded or too narrow. InputError for a ratio outside
    (0, 1), a pattern that matches nothing, an importance that is no number, and a U-Net that this does not fit.
    """
    check_share("ratio", ratio)
    if rounding not in get_args(Rounding):
        raise InputError(f"rounding={rounding!r} is none of {', '.join(get_args(Rounding))}.")
    ignored = _ignored(unet, exclude)
    parts = _parts(unet)
    names = {module: name for name, module in unet.named_modules()}
    graph = _dependency_graph(unet)
    widths = {name: module.channels for name, module in unet.named_modules() if is_kind(module, *SAMPLERS)}
    scores: dict[str, float] = {}
    counts: dict[str, tuple[int, int]] = {}
    decided: list[tuple[Any, list[int]]] = []  # all before the first removal: indices and weights are of the whole network
    for group in (_at_narrowest(graph, group) for group in graph.get_all_groups(ignored_layers=ignored)):
        first = group[0].dep
        site = names[first.target.module]
        values = importance(group, site)
        count = math.lcm(*(parts.get(dep.target.module, 1) for dep, _ in group))
        if values is None or len(values) % count:
            continue
        if not torch.isfinite(values).all():
            raise InputError(f"The importance of {site} is not a number everywhere; are the teacher's weights finite?")
        values = values.detach().cpu().double()
        gone = _least_important(values, count, ratio, rounding, round_to)
        counts[site] = len(gone), len(values)
        if gone:
            decided.append((first, gone))
            scores[site] = (values[gone].sum() / values.sum().clamp_min(torch.finfo(values.dtype).tiny)).item()
    kept: dict[tuple[str, str], list[int]] = {}
    for first, gone in decided:
        group = graph.get_pruning_group(first.target.module, first.handler, gone)
        for dep, positions in group:
            module = dep.target.module
            if isinstance(module, RESIZABLE):
                side = "out" if graph.is_out_channel_pruning_fn(dep.handler) else "in"
                width = module.weight.shape[0 if side == "out" else 1]
                known = kept.setdefault((names[module], side), list(range(width)))
                absent = set(positions)
                kept[names[module], side] = [channel for place, channel in enumerate(known) if place not in absent]
        group.prune()
    _tell_samplers(unet)
    changed = [(name, module) for name, module in unet.named_modules() if {(name, "in"), (name, "out")} & kept.keys()]
    samplers = [(name, unet.get_submodule(name)) for name in widths if unet.get_submodule(name).channels != widths[name]]
    return ChannelPruning(
        edits=tuple(Edit(name, "resize", _sizes(module), scores.get(name)) for name, module in [*changed, *samplers]),
        kept={f"{name}.{side}": torch.tensor(channels) for (name, side), channels in kept.items()},
        scores=scores,
        gone=counts,
    )


def _ignored(unet: nn.Module, exclude: Sequence[str]) -> list[nn.Module]:
    """conv_out, excluded modules with all inside, and layers of other kinds (embedding tables, grouped convolutions)."""
    modules = dict(unet.named_modules())
    for pattern in exclude:
        if not any(fnmatch(name, pattern) for name in modules):
            raise InputError(f"exclude pattern {pattern!r} matches no module; paths look like 'down_blocks.0.resnets.0.conv1'.")
    roots = [module for name, module in modules.items() if any(fnmatch(name, pattern) for pattern in exclude)]
    others = [
        module
        for module in modules.values()
        if next(module.parameters(recurse=False), None) is not None
        and (not isinstance(module, RESIZABLE) or getattr(module, "groups", 1) != 1)
    ]
    return [unet.conv_out, *others, *(inner for root in roots for inner in root.modules())]


def _parts(unet: nn.Module) -> dict[nn.Module, int]:
    """Into how many equal parts the channels of a module fall: groups of norms, heads of queries, keys and values."""
    parts: dict[nn.Module, int] = {module: module.num_groups for module in unet.modules() if isinstance(module, nn.GroupNorm)}
    attentions: list[Any] = [module for module in unet.modules() if is_kind(module, ATTENTION)]
    for attention in attentions:
        parts |= dict.fromkeys((attention.to_q, attention.to_k, attention.to_v), attention.heads)
    return parts


def _dependency_graph(unet: nn.Module) -> Any:
    """torch-pruning's dependency graph, traced through autograd in one forward pass of one sample."""
    from torch_pruning import DependencyGraph

    (sample, timestep), conditions = probe_inputs(unet)
    with torch.enable_grad(), _trainable(unet), _connected(unet):
        return DependencyGraph().build_dependency(
            unet,
            {"sample": sample, "timestep": timestep, **keyword_arguments(conditions)},
            output_transform=lambda output: output.sample,
            verbose=False,
        )


@contextmanager
def _trainable(unet: nn.Module) -> Iterator[None]:
    """All parameters require gradients inside."""
    before = {parameter: parameter.requires_grad for parameter in unet.parameters()}
    unet.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)


@contextmanager
def _connected(unet: nn.Module) -> Iterator[None]:
    """What a plan has made zero hangs on its input inside, as in the forward pass, where a shape must fit all the same."""
    zeros: list[Any] = [module for module in unet.modules() if is_kind(module, ZERO)]
    for module in zeros:
        module.forward = lambda hidden_states, *_, **__: 0 * hidden_states
    try:
        yield
    finally:
        for module in zeros:
            del module.forward


def _at_narrowest(graph: Any, group: Any) -> Any:
    """The same group seen from its narrowest layer, where one channel stands for the pairs that a wider layer holds."""
    layers = [item for item in group if isinstance(item.dep.target.module, nn.Conv2d | nn.Linear)]
    narrowest = min(layers, key=lambda item: len(item.idxs))
    if len(narrowest.idxs) == len(group[0].idxs):
        return group
    return graph.get_pruning_group(narrowest.dep.target.module, narrowest.dep.handler, sorted(narrowest.idxs))


def _least_important(values: torch.Tensor, parts: int, ratio: float, rounding: Rounding, round_to: int) -> list[int]:
    """Indices, ascending, of the channels to remove: the same places in each of the `parts` equal parts."""

    def removed(channels: int) -> int:
        return channels - math.floor(channels * (1 - ratio) + 1e-9)  # the floor of 10 * (1 - 0.9) is 1, not 0

    by_place = values.unflatten(0, (parts, -1)).mean(0)
    size = len(by_place)
    count = min(size - 1, removed(size) if rounding == "up" else removed(len(values)) // parts)
    step = math.lcm(parts, round_to) // parts  # of the channels left in a part
    left = min(size, math.ceil((size - count) / step) * step)
    places = by_place.argsort(stable=True)[: size - left]
    return (places + torch.arange(parts)[:, None] * size).flatten().sort().values.tolist()


@torch.no_grad()
def _tell_samplers(unet: nn.Module) -> None:
    """Gives up- and downsamplers the width they check their input for, in a forward pass that also proves the sizes fit."""

    def take_width(module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        module.channels = arguments[0].shape[1]

    handles = [module.register_forward_pre_hook(take_width) for module in unet.modules() if is_kind(module, *SAMPLERS)]
    arguments, conditions = probe_inputs(unet)
    try:
        predict(unet, *arguments, conditions)
    except (RuntimeError, ValueError) as error:  # ValueError: norm groups of a single value
        raise InputError(f"The channels of this {type(unet).__name__} cannot be pruned: {first_line(error)}") from error
    finally:
        for handle in handles:
            handle.remove()


def _sizes(module: Any) -> dict[str, int]:
    """The numbers that the "resize" of a module needs (common/pruning/pruned_denoiser.py)."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        return {"in": module.weight.shape[1], "out": module.weight.shape[0]}
    return {"channels": module.channels if is_kind(module, *SAMPLERS) else len(module.weight)}
