"""A plan as text: what is done at each site, how many parameters go with it, and the site's score."""

import copy
from typing import Any

import torch
from torch import nn

from common.cost.macs import count_parameters
from common.pruning.plan import Edit, Plan
from common.pruning.pruned_denoiser import build_replacement


def removed_parameters(edit: Edit, unet: nn.Module) -> int:
    """How many parameters go with an edit: all at its site but a kept shortcut, or what is new there.

    Of a "mask" and a "resize" their part.
    """
    module: Any = unet.get_submodule(edit.site)
    kept = 0
    if edit.operation == "mask":
        return edit.sizes["pruned"]
    if edit.operation in ("resize", "conv1x1", "linear") and edit.sizes:
        with torch.device("meta"):
            kept = count_parameters(build_replacement(copy.deepcopy(module).to("meta"), edit.to_dict()))
    if edit.operation == "shortcut" and getattr(module, "conv_shortcut", None) is not None:
        kept = count_parameters(module.conv_shortcut)
    return count_parameters(module) - kept


def parameters_that_go(plan: Plan, unet: nn.Module) -> list[int]:
    """How many parameters go with each edit of a plan, those that have gone with an earlier one not counted again."""
    replaced = {edit.site for edit in plan.edits if edit.operation not in ("mask", "resize")}
    gone: dict[str, int] = {}
    for edit in plan.edits:
        inside = [site for site in gone if site.startswith(f"{edit.site}.") and edit.operation != "resize"]
        if edit.operation == "shortcut":  # which keeps what is there of it
            inside = [site for site in inside if not f"{site}.".startswith(f"{edit.site}.conv_shortcut.")]
        whole = any(edit.site.startswith(f"{site}.") for site in gone if site in replaced)
        gone[edit.site] = 0 if whole else removed_parameters(edit, unet) - sum(gone[site] for site in inside)
    return list(gone.values())


def plan_table(plan: Plan, unet: nn.Module | None = None) -> str:
    """A line for each edit, in the plan's order, with what its operation is told (channels, strides).

    unet: the unpruned network, on any device; with it each line has the parameters that go.
    """
    head = ["site", "operation", "score"] if unet is None else ["site", "operation", "parameters that go", "score"]
    lines, counts = [head], [] if unet is None else parameters_that_go(plan, unet)
    for place, edit in enumerate(plan.edits):
        sizes = ", ".join(f"{name} {value}" for name, value in edit.sizes.items())
        gone = [f"{counts[place]:,}"] if counts else []
        score = "" if edit.score is None else f"{edit.score:.3g}"
        lines.append([edit.site, f"{edit.operation} ({sizes})" if sizes else edit.operation, *gone, score])
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    left = 2  # columns of words; numbers stand to the right
    rows = [
        "  ".join(
            f"{cell:<{w}}" if at < left else f"{cell:>{w}}" for at, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    edits = "1 edit" if len(plan.edits) == 1 else f"{len(plan.edits)} edits"
    return "\n".join([f"{plan.method}: {edits}", *(row.rstrip() for row in rows)])
