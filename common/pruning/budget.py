"""A budget in place of a ratio: the least that a method has to remove for a student that keeps to it."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeVar

from torch import nn

from common.cost.macs import checkpoint_bytes, count_parameters
from common.errors import InputError
from common.pruning.forecast import CalibrationSize, Forecast
from common.pruning.plan import apply_plan
from common.settings import Positive

HALVINGS = 8  # of the knob between 0 and 1: the least removal to 0.4 %
UNITS = {"parameters": "{:,.0f}", "size_mb": "{:.1f}", "macs": "{:,.0f}", "latency_ratio": "{:.2f}"}

Made = TypeVar("Made")


@dataclass(frozen=True)
class Budget:
    """What a student's denoiser may take at most; all that are given must hold.

    parameters: how many. size_mb: megabytes (10^6 bytes) of its weights in half precision. macs: of a forward pass of one
    sample, attention products included. latency_ratio: time of a forward pass over the teacher's, measured on the device.
    """

    parameters: Positive | None = None
    size_mb: Positive | None = None
    macs: Positive | None = None
    latency_ratio: Positive | None = None

    @property
    def given(self) -> dict[str, float]:
        """The bounds by name, the cheapest to look at first."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def shown(costs: Mapping[str, float], beside: Mapping[str, float] | None = None) -> str:
    """The costs in words; of those that would read like the ones `beside` them, and are others, all digits."""

    def told(name: str, value: float) -> str:
        short, other = UNITS[name].format(value), (beside or {}).get(name, value)
        return short if value == other or short != UNITS[name].format(other) else f"{value:,.10g}"

    return ", ".join(f"{name} {told(name, value)}" for name, value in costs.items())


def bounds_of(method: Any) -> dict[str, float]:
    """The bounds of the method's budget; InputError where it has none."""
    found = Budget(**method.budget).given
    if not found:
        raise InputError(f"method.budget is empty: give one of {', '.join(UNITS)}, or null.")
    return found


def least_within(
    method: Any,
    make: Callable[[Any], Made],
    costs: Callable[[Made, str], float],
    intact: Callable[[str], float],
    only: Collection[str] = tuple(UNITS),
    tell: Callable[[str], None] = lambda line: None,
) -> tuple[Made, dict[str, float]]:
    """What `make` gives of the method whose knob is the least that keeps to its budget, and what that costs, by name.

    method: a dataclass with a `budget` and the name of a setting from 0 to 1 as its `knob`. costs: one figure of what was made.
    intact: the same figure of the teacher. only: the bounds that are looked at. tell: is told of each value that was tried.
    InputError, naming the nearest, where the budget cannot be reached, and where the teacher keeps to it; and what `make`
    raises where it refuses every value.
    """
    bounds = bounds_of(method)
    budget = {name: bound for name, bound in bounds.items() if name in only}
    if budget == bounds and all(intact(name) <= bound for name, bound in budget.items()):
        has = shown({name: intact(name) for name in budget})
        raise InputError(f"method.budget: the teacher keeps to {shown(budget)} as it is ({has}); give less, or method=dense.")
    low, high = 0.0, 1.0
    best: tuple[Made, dict[str, float]] | None = None
    nearest: tuple[float, dict[str, float]] | None = None
    refused: InputError | None = None
    for _ in range(HALVINGS):
        value = (low + high) / 2
        try:
            made = make(replace(method, **{method.knob: value}, budget=None))
        except InputError as error:  # more than can be removed
            high, refused = value, error
            tell(f"method.{method.knob}={value:g}: {error}")
            continue
        found: dict[str, float] = {}
        for name, bound in budget.items():
            found[name] = costs(made, name)
            if found[name] > bound:
                low, nearest = value, (value, found)
                break
        else:
            high, best = value, (made, found)
        tell(f"method.{method.knob}={value:g}: {shown(found, budget)}")
    if best is not None:
        return best
    told = f"method.budget: {shown(budget, None if nearest is None else nearest[1])} cannot be reached"
    if nearest is None:
        raise InputError(f"{told}: {refused}")
    raise InputError(f"{told}; the nearest is {shown(nearest[1], budget)}, at method.{method.knob}={nearest[0]:g}.")


def forecast_within(method: Any, unet: nn.Module, size: CalibrationSize) -> Forecast:
    """The method's forecast; with a budget, of the least removal that keeps to its parameters and size.

    What MACs and times a student will have depends on what goes; the forecast leaves them to the job.
    """
    if method.budget is None:
        return method.forecast(unet, size)
    only = [name for name in ("parameters", "size_mb") if name in bounds_of(method)]
    if not only:
        found = replace(method, **{method.knob: 0.5}, budget=None).forecast(unet, size)
        return replace(found, exact=False, note="student: as if half went; how much has to go the job finds out by measuring")

    def costs(forecast: Forecast, name: str) -> float:
        student = unet if forecast.plan is None else apply_plan(unet, forecast.plan)
        return size_of(student, name)

    found, _ = least_within(method, lambda other: other.forecast(unet, size), costs, partial(size_of, unet), only)
    return found


def size_of(network: nn.Module, name: str) -> float:
    """The parameters of a network, or its size_mb."""
    return count_parameters(network) if name == "parameters" else checkpoint_bytes(network) / 1e6
