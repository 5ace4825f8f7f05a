"""What each operator costs, for selections that weigh a score against what the removal saves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import nn

from common.cost.macs import site_costs
from common.errors import InputError
from ld_pruner.operators import Operator

CostUnit = Literal["none", "parameters", "macs", "milliseconds"]
COST_UNITS = get_args(CostUnit)


def operator_costs(
    unet: nn.Module,
    operators: Sequence[Operator],
    unit: str,
    folder: Path | None = None,
    teacher: str = "",
    conditions: dict[str, torch.Tensor] | None = None,
) -> dict[str, float]:
    """The cost of each operator in `unit`, at least a tiny positive number; 1 each for "none".

    parameters: those the edit saves. macs: of one sample, counted on the meta device. milliseconds: the median over five
    forward passes of one sample of the time inside the module, on the U-Net's own device; kept in `folder` for `teacher`.
    """
    if unit not in COST_UNITS:
        raise InputError(f"score_per={unit!r} is none of {', '.join(COST_UNITS)}.")
    if unit == "none":
        return {operator.site: 1.0 for operator in operators}
    if unit == "parameters":
        return {operator.site: max(operator.parameters_saved, 1.0) for operator in operators}
    sites = [operator.site for operator in operators]
    found = site_costs(unet, sites, unit, folder, teacher, conditions)
    return {site: max(cost, 1.0 if unit == "macs" else 1e-6) for site, cost in found.items()}
