"""Block-local distillation: what blocks did together, the one of them that is left learns alone.

A segment is a kept block and the removed ones right after it (before the first kept one: those before it), or a block that
lost a half. The student's block is given what the teacher gave to the segment's first block, and compared with what came out
of its last one, so that neither the rest of the student nor its errors have a part in it: PPCL distils its intervals of a
diffusion transformer so (arXiv 2511.16156).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import nn

from common.denoisers.denoiser import architecture_of
from common.errors import InputError
from common.pruning.pruned_denoiser import REPLACEMENTS


@dataclass(frozen=True)
class Segment:
    """Paths of the student's block, and of the teacher's blocks whose input it is given and whose output it is to give."""

    kept: str
    first: str
    last: str


def check_has_blocks(teacher: nn.Module) -> list[str]:
    """The paths of the teacher's blocks; InputError for a denoiser that is no transformer."""
    sites = [site for site, _ in architecture_of(teacher).blocks(teacher)]
    if not sites:
        raise InputError(
            f"distill.local_weight: {type(teacher).__name__} is no diffusion transformer, whose blocks could be trained each "
            "alone; take the feature losses (distill.feature_weight)."
        )
    return sites


def list_segments(student: nn.Module, teacher: nn.Module) -> list[Segment]:
    """The segments in order; blocks beside which nothing was removed are in none.

    InputError for a denoiser that is no transformer, and for a student that lacks no block, or whole lists of them only.
    """
    sites = check_has_blocks(teacher)
    left = {site: block.module for site, block in architecture_of(student).blocks(student)}
    found = []
    for _, group in groupby(sites, key=lambda site: site.rpartition(".")[0]):
        found += segments_of(list(group), left)
    if not found:
        raise InputError("distill.local_weight: the plan removes no block, or half of one, beside which another one is left.")
    return found


def segments_of(sites: list[str], left: dict[str, nn.Module]) -> list[Segment]:
    """Those of one list of blocks; left: the student's blocks by their paths."""
    kept = [index for index, site in enumerate(sites) if site in left]
    found = []
    for place, index in enumerate(kept):
        first = 0 if place == 0 else index
        last = (kept[place + 1] if place + 1 < len(kept) else len(sites)) - 1
        halved = any(isinstance(module, REPLACEMENTS) for module in left[sites[index]].modules())
        if first < last or halved:
            found.append(Segment(sites[index], sites[first], sites[last]))
    return found


class LocalOutputs:
    """Gives the student's blocks what the teacher's took in its last forward pass, by hooks on the teacher."""

    def __init__(self, student: nn.Module, teacher: nn.Module):
        self.student: Any = student
        self.segments = list_segments(student, teacher)
        self.blocks = {each.kept: student.get_submodule(each.kept) for each in self.segments}
        self.inputs: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self.outputs: dict[str, Any] = {}
        self.handles = []
        for each in self.segments:
            first, last = teacher.get_submodule(each.first), teacher.get_submodule(each.last)
            self.handles.append(first.register_forward_pre_hook(self._keep_input(each.kept), with_kwargs=True))
            self.handles.append(last.register_forward_hook(self._keep_output(each.kept)))

    def _keep_input(self, kept: str) -> Callable[..., None]:
        def hook(_module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            self.inputs[kept] = (arguments, named)

        return hook

    def _keep_output(self, kept: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _arguments: Any, output: Any) -> None:
            self.outputs[kept] = output

        return hook

    def pairs(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """What the student's blocks give and what they should, each stream of each segment, in one order."""
        ours, theirs = [], []
        for kept, block in self.blocks.items():
            arguments, named = self.inputs[kept]
            call = partial(block, **named)
            if getattr(self.student, "gradient_checkpointing", False):  # by the function that diffusers' own forward calls
                call = partial(self.student._gradient_checkpointing_func, call)
            given = as_streams(call(*arguments)), as_streams(self.outputs[kept])
            for one, other in zip(*given, strict=True):
                if one is not None and other is not None:  # the last block of some has no text
                    ours.append(one)
                    theirs.append(other)
        return ours, theirs

    def remove(self) -> None:
        """Takes the hooks off the teacher."""
        for handle in self.handles:
            handle.remove()


def as_streams(output: Any) -> tuple[torch.Tensor | None, ...]:
    """What a block returns, as a tuple."""
    return output if isinstance(output, tuple) else (output,)
