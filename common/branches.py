"""Several differently edited copies of one network in one forward pass.

The batch holds the copies one after the other. An edited site becomes a Branch: it runs the original module on all rows
and the replacement on the rows of the copies that edit this site. In a pass that is not part of a roll-out, all copies
agree before the first edit; PrefixCache replays that part instead of computing it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import nn

from common.plans import Edit, load_replacement
from common.pruned_unet import set_module


class Branch(nn.Module):
    """`original` for most rows, `replacements[copy]` for the rows of that copy.

    The batch is (groups, copies, rows): groups is 2 under classifier-free guidance, else 1.
    """

    def __init__(self, original: nn.Module, replacements: dict[int, nn.Module], copies: int, groups: int):
        super().__init__()
        self.original = original
        self.replacements = nn.ModuleDict({str(copy): module for copy, module in replacements.items()})
        self.copies, self.groups = copies, groups

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        output = self.original(hidden_states, *args, **kwargs)
        merged = output[0] if isinstance(output, tuple) else output
        if merged is hidden_states:
            merged = merged.clone()
        split = merged.unflatten(0, (self.groups, self.copies, -1))
        batch = len(hidden_states)

        def rows(value: Any, copy: int) -> Any:
            if not isinstance(value, torch.Tensor) or value.dim() == 0 or len(value) != batch:
                return value
            return value.unflatten(0, (self.groups, self.copies, -1))[:, copy].flatten(0, 1)

        for name, module in self.replacements.items():
            copy = int(name)
            replaced = module(
                rows(hidden_states, copy),
                *[rows(value, copy) for value in args],
                **{key: rows(value, copy) for key, value in kwargs.items()},
            )
            replaced = replaced[0] if isinstance(replaced, tuple) else replaced
            split[:, copy] = replaced.unflatten(0, (self.groups, -1))
        return (merged,) if isinstance(output, tuple) else merged


@contextmanager
def branched(
    network: nn.Module, edits: Sequence[Edit], tensors: dict[str, torch.Tensor], groups: int = 1
) -> Iterator[nn.Module]:
    """`network` as len(edits) copies, copy i with edits[i]; afterwards the very same modules are back."""
    by_site: dict[str, dict[int, nn.Module]] = {}
    originals: list[tuple[str, nn.Module]] = []
    for copy, edit in enumerate(edits):
        replacement = load_replacement(network.get_submodule(edit.site), edit, tensors)
        by_site.setdefault(edit.site, {})[copy] = replacement
    try:
        for site in sorted(by_site, key=lambda site: -site.count(".")):  # the deepest first: paths stay valid
            originals.append((site, network.get_submodule(site)))
            set_module(network, site, Branch(originals[-1][1], by_site[site], len(edits), groups))
        yield network
    finally:
        for site, module in reversed(originals):
            set_module(network, site, module)


UNITS = (ResnetBlock2D, Transformer2DModel, Downsample2D, Upsample2D, Attention)


class PrefixCache:
    """The outputs of a network's blocks on one batch, in the order of execution, to be replayed for edited copies."""

    def __init__(self, network: nn.Module):
        self.network = network
        self.order: list[str] = []
        self.outputs: dict[str, Any] = {}

    def record(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Runs the network, keeps what its blocks put out and returns its output's sample."""
        inside = ()
        handles = []
        for name, module in self.network.named_modules():
            if isinstance(module, UNITS) and not (inside and name.startswith(inside)):
                inside = (*inside, f"{name}.")
                handles.append(module.register_forward_hook(self._keep(name)))
        try:
            return self.network(*args, **kwargs).sample
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

    @contextmanager
    def replayed(self, blocks: int, copies: int) -> Iterator[None]:
        """The first `blocks` blocks give their recorded output, `copies` times over, without computing."""
        replaced = [(name, self.network.get_submodule(name)) for name in self.order[:blocks]]
        try:
            for name, _ in replaced:
                set_module(self.network, name, _Replay(self.outputs[name], copies))
            yield
        finally:
            for name, module in replaced:
                set_module(self.network, name, module)


@torch.no_grad()
def edited_outputs(
    network: nn.Module,
    edits: Sequence[Edit],
    tensors: dict[str, torch.Tensor],
    inputs: tuple[torch.Tensor, torch.Tensor],
    conditions: dict[str, torch.Tensor],
    copies: int,
) -> Iterator[tuple[Edit, torch.Tensor, torch.Tensor]]:
    """(edit, intact output, output with this edit alone), each (batch, ...), for every edit; one batch of `inputs`.

    inputs: latents (batch, channels, height, width) and timesteps (batch,). `copies` edits share a forward pass, which
    starts at the first block that any of them changes.
    """
    latents, timesteps = inputs
    cache = PrefixCache(network)
    intact = cache.record(latents, timesteps, **conditions)
    ordered = sorted(edits, key=lambda edit: cache.position(edit.site))
    for first in range(0, len(ordered), copies):
        group = ordered[first : first + copies]
        count = len(group)
        blocks = cache.position(group[0].site)
        repeated = {name: value.repeat(count, *[1] * (value.dim() - 1)) for name, value in conditions.items()}
        with branched(network, group, tensors), cache.replayed(blocks, count):
            output = network(latents.repeat(count, 1, 1, 1), timesteps.repeat(count), **repeated).sample
        for edit, changed in zip(group, output.unflatten(0, (count, -1)), strict=True):
            yield edit, intact, changed


class _Replay(nn.Module):
    """Ignores its input and returns a recorded output, repeated along the batch."""

    def __init__(self, output: Any, copies: int):
        super().__init__()
        self.output, self.copies = output, copies

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        tensor = self.output[0] if isinstance(self.output, tuple) else self.output
        repeated = tensor.repeat(self.copies, *[1] * (tensor.dim() - 1))
        return (repeated,) if isinstance(self.output, tuple) else repeated
