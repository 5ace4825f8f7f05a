"""Linear maps in the place of removed blocks: what neighbouring blocks of a diffusion transformer did, as far as one map goes.

Where blocks beside each other are removed whole, the first of them becomes a linear map added to each of its streams, fitted by
least squares to what the teacher's blocks made of them; the others stay identities. PPCL (arXiv 2511.16156) puts linear maps in
the place of a text stream and of feed-forward parts; LD-Pruner's 1x1 convolutions are such maps of a U-Net's operators.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import nn

from common.cost.macs import probe_inputs
from common.denoisers.denoiser import architecture_of
from common.diffusion.sampling import predict
from common.errors import InputError
from common.pruning.plan import WHOLE, Edit, Plan
from common.scoring.calibration import Calibration
from common.scoring.noisy_batches import noisy_batches

RIDGE = 1e-4  # of each input's mean square
TOKENS_AT_ONCE = 2**13  # in double precision

IMAGE = "hidden_states"
Streams = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Interval:
    """Blocks beside each other that are removed: the paths of the first and the last, and the streams they change."""

    first: str
    last: str
    streams: tuple[str, ...]


def check_has_streams(network: nn.Module) -> None:
    """InputError for a denoiser that is no transformer."""
    if not any(architecture_of(network).blocks(network)):
        raise InputError(
            f"replacement=linear: {type(network).__name__} is no diffusion transformer, whose blocks could become linear maps; "
            "LD-Pruner's operators of a U-Net can (method=ld_pruner method.initial_weights=least_squares)."
        )


def list_intervals(network: nn.Module, edits: Sequence[Edit]) -> list[Interval]:
    """Runs of whole blocks that the edits remove, each within one list; blocks that an earlier plan has left nothing of may
    lie between.

    InputError for a denoiser that is no transformer, and where no whole block is removed.
    """
    check_has_streams(network)
    gone = {edit.site for edit in edits if edit.operation in WHOLE}
    found = []
    blocks = dict(architecture_of(network).blocks(network))
    for name in dict.fromkeys(site.rpartition(".")[0] for site in blocks):
        beside = [f"{name}.{child}" for child, module in network.get_submodule(name).named_children() if computes(module)]
        for removed, run in groupby(beside, key=gone.__contains__):
            if removed:
                sites = list(run)
                found.append(Interval(sites[0], sites[-1], blocks[sites[0]].streams))
    if not found:
        raise InputError("replacement=linear: the plan removes no whole block; take replacement=identity.")
    return found


def computes(module: nn.Module) -> bool:
    """Whether a module is more than what an identity is."""
    return next(module.parameters(), None) is not None


@contextmanager
def watched(network: nn.Module, intervals: Sequence[Interval], see: Callable[[Interval, Streams, Streams], None]) -> Iterator:
    """Within, each forward pass tells `see` each interval's inputs and outputs, (batch, tokens, width) by stream."""
    given: dict[str, Streams] = {}

    def keep(each: Interval, module: nn.Module) -> Any:
        signature = inspect.signature(module.forward)

        def hook(_module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            bound = signature.bind(*arguments, **named).arguments
            given[each.first] = {name: bound[name] for name in each.streams}

        return module.register_forward_pre_hook(hook, with_kwargs=True)

    def tell(each: Interval, module: nn.Module) -> Any:
        def hook(_module: nn.Module, _arguments: Any, output: Any) -> None:
            values = output if isinstance(output, tuple) else (output,)
            made = {name: value for name, value in zip(each.streams, values, strict=True) if value is not None}
            see(each, {name: given[each.first][name] for name in made}, made)

        return module.register_forward_hook(hook)

    handles = [keep(each, network.get_submodule(each.first)) for each in intervals]
    handles += [tell(each, network.get_submodule(each.last)) for each in intervals]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class LeastSquares:
    """Normal equations, in float64, of the affine map from inputs to what is added to them, over all tokens of all batches."""

    def __init__(self) -> None:
        self.gram: torch.Tensor | float = 0.0
        self.product: torch.Tensor | float = 0.0

    def add(self, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        chunks = (tensor.flatten(0, -2).split(TOKENS_AT_ONCE) for tensor in (inputs, outputs))
        for given, made in zip(*chunks, strict=True):
            rows = torch.cat([given.double(), given.new_ones(len(given), 1, dtype=torch.float64)], 1)
            self.gram = self.gram + rows.T @ rows
            self.product = self.product + rows.T @ (made.double() - rows[:, :-1])

    def solve(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight (width, width) and the bias (width,); a ridge pulls what the rows do not tell towards the identity."""
        assert isinstance(self.gram, torch.Tensor)
        size = self.gram.diagonal().clamp_min(torch.finfo(torch.float64).tiny).sqrt()  # else large inputs alone would count
        scaled = self.gram / size / size[:, None]
        ridge = RIDGE * torch.eye(len(scaled), dtype=scaled.dtype, device=scaled.device)
        solution = torch.linalg.solve(scaled + ridge, self.product / size[:, None]) / size[:, None]
        return solution[:-1].T, solution[-1]


def with_maps(
    plan: Plan, intervals: Sequence[Interval], maps: dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor]]
) -> Plan:
    """The plan with an edit "linear" at the first block of each interval; maps: weight and bias by that path and stream."""
    edits, tensors = {edit.site: edit for edit in plan.edits}, dict(plan.tensors)
    for each in intervals:
        own = {stream: maps[each.first, stream] for stream in each.streams if (each.first, stream) in maps}
        sizes = {"returns": list(each.streams), "maps": {stream: len(bias) for stream, (_, bias) in own.items()}}
        edits[each.first] = replace(edits[each.first], operation="linear", sizes=sizes)
        for stream, (weight, bias) in own.items():
            tensors |= {f"{each.first}.{stream}_weight": weight.contiguous(), f"{each.first}.{stream}_bias": bias.contiguous()}
    settings = plan.settings | {"replacement": "linear"}
    return replace(plan, edits=tuple(edits.values()), tensors=tensors, settings=settings)


def read_after(network: nn.Module, each: Interval, streams: Streams) -> Streams:
    """Of what an interval gives, by stream, what the network reads: after its last block the image alone."""
    *_, last = (site for site, _ in architecture_of(network).blocks(network))
    return {IMAGE: streams[IMAGE]} if each.last == last and IMAGE in streams else streams


@torch.no_grad()
def fit_linear_maps(network: nn.Module, plan: Plan, calibration: Calibration, batch_size: int = 32) -> Plan:
    """The plan with linear maps in the place of the blocks that it removes whole.

    network: the unpruned transformer, on the calibration's device. calibration: whose training rows, with noise on them, the
    maps are fitted to; batch_size of them go through the network at once. InputError for a U-Net, for a plan that removes no
    whole block or brings weights of its own (those of a student that others have trained), and without training rows.
    """
    if plan.tensors:
        raise InputError("replacement=linear: the plan brings weights or masks of its own; take replacement=identity.")
    intervals = list_intervals(network, plan.edits)
    found: dict[tuple[str, str], LeastSquares] = {}

    def see(each: Interval, inputs: Streams, outputs: Streams) -> None:
        for stream, made in read_after(network, each, outputs).items():
            found.setdefault((each.first, stream), LeastSquares()).add(inputs[stream], made)

    with watched(network, intervals, see):
        for batch in noisy_batches(calibration, "even", batch_size, guided=False, seed=0):
            predict(network, batch.latents, batch.timesteps, batch.conditions)
    like = next(network.parameters())
    solved = {name: each.solve() for name, each in found.items()}
    return with_maps(plan, intervals, {name: (w.to(like).cpu(), b.to(like).cpu()) for name, (w, b) in solved.items()})


@torch.no_grad()
def empty_linear_maps(network: nn.Module, plan: Plan) -> Plan:
    """As fit_linear_maps, with zeros for weights, from shapes alone: for networks on the meta device."""
    intervals = list_intervals(network, plan.edits)
    widths: dict[tuple[str, str], torch.Tensor] = {}

    def see(each: Interval, inputs: Streams, outputs: Streams) -> None:
        widths.update({(each.first, stream): made for stream, made in read_after(network, each, outputs).items()})

    with watched(network, intervals, see):
        arguments, conditions = probe_inputs(network)
        predict(network, *arguments, conditions)
    zeros = {name: (made.new_zeros(2 * made.shape[-1:]), made.new_zeros(made.shape[-1])) for name, made in widths.items()}
    return with_maps(plan, intervals, zeros)
