"""Which layers to remove: minimal summed loss with at least a wanted size removed (LAPTOP-Diff, arXiv 2404.11098).

A 0-1 knapsack. The paper solves a variant of it by dynamic programming (as far as is known); here HiGHS solves it exactly
as an integer programme, for sizes of any unit: parameters, MACs, milliseconds.
"""

from collections.abc import Sequence

import numpy as np

from common.errors import InputError
from common.layer_pruner import lowest_layers


def select_layers(losses: Sequence[float], sizes: Sequence[float], budget: float) -> list[int]:
    """Indices, ascending, of the layers with the least summed loss whose sizes sum to at least `budget`; exact.

    losses: finite, one per layer; sizes: one per layer, not negative, in the unit of `budget`. A layer with a negative loss
    is always among them: it lowers the sum. InputError when the lengths differ, a loss is not finite, or even all layers
    together fall short of the budget.
    """
    cost, size = np.asarray(losses, dtype=float), np.asarray(sizes, dtype=float)
    if cost.shape != size.shape or cost.ndim != 1:
        raise InputError(f"select_layers: {cost.size} losses for {size.size} sizes.")
    if not np.isfinite(cost).all():
        raise InputError(f"select_layers: the loss of layer {int(np.argmin(np.isfinite(cost)))} is not finite.")
    largest = size.sum()
    if budget > largest * (1 + 1e-12):
        raise InputError(f"select_layers: a budget of {budget:g} is out of reach; all layers together have {largest:g}.")
    taken = set(np.flatnonzero(cost < 0).tolist())
    rest = [index for index in range(len(cost)) if index not in taken]
    short = budget - size[list(taken)].sum()
    if short > 0:
        # an optimum holds no layer that costs more than some set that is large enough: the rest is of one scale then
        bound = cost[[rest[i] for i in greedy_layers(cost[rest], size[rest], short)]].sum()
        rest = [index for index in rest if cost[index] <= bound]
        taken |= {rest[place] for place in _least_costly(cost[rest], size[rest], short, bound)}
    return sorted(taken)


def _least_costly(cost: np.ndarray, size: np.ndarray, budget: float, bound: float) -> list[int]:
    """The set of least cost with at least `budget`, by HiGHS; no cost is negative or above `bound`, the cost of some such set.

    Rows are scaled to about 1, since HiGHS' tolerances are absolute; whether the budget is met is checked exactly.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    if bound == 0 or budget >= size.sum() * (1 - 1e-12):
        return greedy_layers(cost, size, budget)
    unit = size.max()
    wanted = budget / unit
    for _ in range(8):
        found = milp(
            cost / bound,
            constraints=LinearConstraint(size[None] / unit, lb=wanted),
            integrality=np.ones_like(cost),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 0.0},
        )
        chosen = [index for index, value in enumerate(found.x) if value > 0.5]
        short = budget - size[chosen].sum()
        if short <= 0:
            return chosen
        wanted += max(short / unit, 1e-9)
    raise RuntimeError("HiGHS kept returning a set below the budget.")


def greedy_layers(losses: Sequence[float], sizes: Sequence[float], budget: float) -> list[int]:
    """A comparison: layers in the order of loss per size until the budget is met."""
    per_size = [loss / max(size, 1e-30) for loss, size in zip(losses, sizes, strict=True)]
    return lowest_layers(per_size, sizes, budget)
