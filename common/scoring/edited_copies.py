"""Several differently edited copies of one network in one forward pass.

The batch holds the copies one after the other. An edited site becomes a Branch: it runs the replacement on the rows of the
copies that edit this site and the original module on the others. In a pass that is not part of a roll-out, a copy agrees
with the intact network before its edit; PrefixCache replays that part instead of computing it.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from common.denoisers.denoiser import Conditions, architecture_of
from common.denoisers.module_kinds import ATTENTION, RESNET, SAMPLERS, TRANSFORMER, is_kind
from common.diffusion.sampling import predict
from common.pruning.plan import Edit, load_replacement
from common.runtime.collectives import shared_out


def batch_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """The rows of what a module is called with: those of its first tensor."""
    return len(next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor) and value.dim()))


def joined(parts: Sequence[torch.Tensor | None], join: Callable[[list[torch.Tensor]], torch.Tensor]) -> torch.Tensor | None:
    """One stream of all copies; None where it ends in one of them, so that nothing reads it."""
    known = [each for each in parts if each is not None]
    return join(known) if len(known) == len(parts) else None


class Branch(nn.Module):
    """`original` for most rows, `replacements[copy]` for the rows of that copy.

    The batch is (groups, copies, rows): groups is 2 under classifier-free guidance, else 1. Rows that are replaced do not
    pass through `original`, unless another Branch inside it counts on all copies.
    """

    def __init__(self, original: nn.Module, replacements: dict[int, nn.Module], copies: int, groups: int):
        super().__init__()
        nested = any(isinstance(module, Branch) for module in original.modules())
        self.original = original
        self.replacements = nn.ModuleDict({str(copy): module for copy, module in replacements.items()})
        self.through = [copy for copy in range(copies) if nested or copy not in replacements]
        self.copies, self.groups = copies, groups

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        batch = batch_of(args, kwargs)

        def run(module: nn.Module, copies: list[int]) -> tuple[list[torch.Tensor | None], bool]:
            """The outputs for some copies (groups, copies, rows, ...), and whether the module gave them as a tuple.

            None stands for a stream that ends: the text of Stable Diffusion 3 in its last block.
            """
            chosen = slice(copies[0], copies[-1] + 1) if copies[-1] - copies[0] + 1 == len(copies) else copies

            def rows(value: Any) -> Any:
                if not isinstance(value, torch.Tensor) or value.dim() == 0 or len(value) != batch:
                    return value
                return value.unflatten(0, (self.groups, self.copies, -1))[:, chosen].flatten(0, 2)

            output = module(*map(rows, args), **{key: rows(value) for key, value in kwargs.items()})
            tensors = output if isinstance(output, tuple) else (output,)
            split = [None if each is None else each.unflatten(0, (self.groups, len(copies), -1)) for each in tensors]
            return split, isinstance(output, tuple)

        parts: dict[int, list[torch.Tensor | None]] = {}
        as_tuple = False
        if self.through:
            outputs, as_tuple = run(self.original, self.through)
            parts |= {copy: [each if each is None else each[:, at] for each in outputs] for at, copy in enumerate(self.through)}
        for name, module in self.replacements.items():
            outputs, alone = run(module, [int(name)])
            parts[int(name)] = [each if each is None else each[:, 0] for each in outputs]
            as_tuple = as_tuple or alone
        streams = zip(*(parts[copy] for copy in range(self.copies)), strict=True)
        merged = tuple(joined(each, lambda known: torch.stack(known, 1).flatten(0, 2)) for each in streams)
        return merged if as_tuple else merged[0]


@contextmanager
def edited_copies(
    network: nn.Module,
    edits: Sequence[Edit],
    tensors: dict[str, torch.Tensor],
    groups: int = 1,
    present: Sequence[int] | None = None,
) -> Iterator[nn.Module]:
    """`network` as len(edits) copies, copy i with edits[i]; afterwards the very same modules are back.

    present: for each edit, how many of the copies, the first ones, are in the batch at its site; all of them by default.
    """
    present = [len(edits)] * len(edits) if present is None else present
    by_site: dict[str, dict[int, nn.Module]] = {}
    copies: dict[str, int] = {}
    originals: list[tuple[str, nn.Module]] = []
    for copy, edit in enumerate(edits):
        replacement = load_replacement(network.get_submodule(edit.site), edit, tensors)
        by_site.setdefault(edit.site, {})[copy] = replacement
        copies[edit.site] = present[copy]
    try:
        for site in sorted(by_site, key=lambda site: -site.count(".")):  # the deepest first: paths stay valid
            originals.append((site, network.get_submodule(site)))
            network.set_submodule(site, Branch(originals[-1][1], by_site[site], copies[site], groups))
        yield network
    finally:
        for site, module in reversed(originals):
            network.set_submodule(site, module)


SHARED_PREFIX_MODULES = (RESNET, TRANSFORMER, ATTENTION, *SAMPLERS)


class PrefixCache:
    """The outputs of a network's blocks on one batch, in the order of execution, to be replayed for edited copies."""

    def __init__(self, network: nn.Module):
        self.network = network
        self.order: list[str] = []
        self.outputs: dict[str, Any] = {}
        self.computed: set[str] = set()

    def record(self, latents: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """Runs the network, keeps what its blocks put out and returns its output."""
        inside: tuple[str, ...] = ()
        handles = []
        blocks = dict(architecture_of(self.network).blocks(self.network))
        self.computed = {site for site, block in blocks.items() if not block.removable}  # which stay the modules they are
        for name, module in self.network.named_modules():
            if (name in blocks or is_kind(module, *SHARED_PREFIX_MODULES)) and not (inside and name.startswith(inside)):
                inside = (*inside, f"{name}.")
                handles.append(module.register_forward_hook(self._keep(name)))
        try:
            return predict(self.network, latents, timesteps, conditions)
        finally:
            for handle in handles:
                handle.remove()

    def _keep(self, name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self.order.append(name)
            self.outputs[name] = output

        return hook

    def position(self, site: str) -> int:
        """How many blocks run before the one that holds `site`; all of them for a site outside the blocks."""
        for position, unit in enumerate(self.order):
            if site == unit or site.startswith(f"{unit}."):
                return position
        return len(self.order)

    def present(self, positions: Sequence[int], block: int) -> int:
        """How many copies block number `block` computes; `positions` ascend, one a copy.

        Those that differ from the intact network after it; all where nothing is replayed: outside the blocks, and in blocks
        inside which the network itself reads.
        """
        replayed = block < len(self.order) and self.order[block] not in self.computed
        return bisect_right(positions, block) if replayed else len(positions)

    @contextmanager
    def replayed(self, positions: Sequence[int]) -> Iterator[None]:
        """Copy i computes from block positions[i] on (ascending); before, it gives the recorded outputs."""
        replaced = []
        try:
            for block, name in enumerate(self.order):
                if bisect_right(positions, block) == len(positions):
                    break
                if name in self.computed:
                    continue
                computing = self.present(positions, block)
                module = self.network.get_submodule(name)
                replaced.append((name, module))
                self.network.set_submodule(name, Replay(module, self.outputs[name], len(positions), computing))
            yield
        finally:
            for name, module in replaced:
                self.network.set_submodule(name, module)


@torch.no_grad()
def edited_outputs(
    network: nn.Module,
    edits: Sequence[Edit],
    tensors: dict[str, torch.Tensor],
    inputs: tuple[torch.Tensor, torch.Tensor],
    conditions: Conditions,
    copies: int,
    measure: Callable[[torch.Tensor, torch.Tensor], float],
) -> dict[str, float]:
    """measure(intact output, output with this edit alone) by site, outputs (batch, ...), for one batch of `inputs`.

    inputs: latents (batch, channels, height, width) and timesteps (batch,). `copies` edits share a forward pass, in which
    each is computed from the block that it changes on; the passes are shared out over the processes of the job.
    """
    latents, timesteps = inputs
    cache = PrefixCache(network)
    intact = cache.record(latents, timesteps, conditions)
    ordered = sorted(edits, key=lambda edit: cache.position(edit.site))

    def measure_group(first: int) -> dict[str, float]:
        group = ordered[first : first + copies]
        count = len(group)
        positions = [cache.position(edit.site) for edit in group]
        present = [cache.present(positions, position) for position in positions]
        repeated = {name: value.repeat(count, *[1] * (value.dim() - 1)) for name, value in conditions.items()}
        with edited_copies(network, group, tensors, present=present), cache.replayed(positions):
            output = predict(network, latents.repeat(count, 1, 1, 1), timesteps.repeat(count), repeated)
        changed = output.unflatten(0, (count, -1))
        return {edit.site: measure(intact, each) for edit, each in zip(group, changed, strict=True)}

    found = shared_out(range(0, len(ordered), copies), measure_group)
    return {site: value for part in found for site, value in part.items()}


class Replay(nn.Module):
    """A recorded output for the last copies of the batch, what `module` computes for the first `computing` ones."""

    def __init__(self, module: nn.Module, recorded: Any, copies: int, computing: int):
        super().__init__()
        self.module, self.recorded, self.copies, self.computing = module, recorded, copies, computing

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        batch = batch_of(args, kwargs)
        recorded = self.recorded if isinstance(self.recorded, tuple) else (self.recorded,)
        parts = [list(recorded)] * (self.copies - self.computing)
        if self.computing:
            rows = batch // self.copies * self.computing

            def first(value: Any) -> Any:
                return value[:rows] if isinstance(value, torch.Tensor) and value.dim() and len(value) == batch else value

            output = self.module(*map(first, args), **{key: first(value) for key, value in kwargs.items()})
            parts = [list(output) if isinstance(output, tuple) else [output], *parts]
        merged = tuple(joined(each, torch.cat) for each in zip(*parts, strict=True))
        return merged if isinstance(self.recorded, tuple) else merged[0]
