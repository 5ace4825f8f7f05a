"""What each operator costs, for selections that weigh a score against what the removal saves."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from common.errors import InputError
from ld_pruner.operators import Operator, probe_inputs

UNITS = ("none", "parameters", "macs", "milliseconds")


def operator_costs(unet: nn.Module, operators: Sequence[Operator], unit: str) -> dict[str, float]:
    """The cost of each operator in `unit`, at least a tiny positive number; 1 each for "none".

    parameters: those the edit saves. macs: of one sample, counted on the meta device. milliseconds: the median over five
    forward passes of one sample of the time inside the module, on the U-Net's own device.
    """
    if unit not in UNITS:
        raise InputError(f"score_per={unit!r} is none of {', '.join(UNITS)}.")
    if unit == "none":
        return {operator.site: 1.0 for operator in operators}
    if unit == "parameters":
        return {operator.site: max(operator.parameters_saved, 1.0) for operator in operators}
    if unit == "macs":
        return _macs(unet, operators)
    return _milliseconds(unet, operators)


def _macs(unet: nn.Module, operators: Sequence[Operator]) -> dict[str, float]:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        twin = type(unet).from_config(unet.config)
    arguments, conditions = probe_inputs(twin)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        twin(*arguments, **conditions)
    by_module = {name.partition(".")[2]: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    return {operator.site: max(by_module.get(operator.site, 0) / 2, 1.0) for operator in operators}


@torch.no_grad()
def _milliseconds(unet: nn.Module, operators: Sequence[Operator], passes: int = 5) -> dict[str, float]:
    started: dict[str, float] = {}
    times: dict[str, list[float]] = {operator.site: [] for operator in operators}
    synchronize = torch.cuda.synchronize if next(unet.parameters()).is_cuda else lambda: None

    def before(site: str) -> Any:
        def hook(*_: Any) -> None:
            synchronize()
            started[site] = time.perf_counter()

        return hook

    def after(site: str) -> Any:
        def hook(*_: Any) -> None:
            synchronize()
            times[site].append(1000 * (time.perf_counter() - started[site]))

        return hook

    modules = [(operator.site, unet.get_submodule(operator.site)) for operator in operators]
    handles = [module.register_forward_pre_hook(before(site)) for site, module in modules]
    handles += [module.register_forward_hook(after(site)) for site, module in modules]
    arguments, conditions = probe_inputs(unet)
    try:
        for _ in range(passes):
            unet(*arguments, **conditions)
    finally:
        for handle in handles:
            handle.remove()
    return {site: max(sorted(values)[len(values) // 2], 1e-6) for site, values in times.items()}
