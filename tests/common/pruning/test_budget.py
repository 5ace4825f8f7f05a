"""A budget in place of a ratio: the least removal that keeps to it, by every bound, and what is told where none does."""

from dataclasses import dataclass, replace

import pytest

from baselines.diff_pruning import DiffPruning
from baselines.magnitude import Magnitude
from baselines.random_layers import RandomLayers
from common.cost.macs import checkpoint_bytes, count_macs, count_parameters, probe_inputs
from common.errors import InputError
from common.pruning.budget import HALVINGS, forecast_within, least_within, size_of
from common.pruning.forecast import CalibrationSize
from common.pruning.plan import apply_plan
from tests.small_students import small_unet

SIZE = CalibrationSize(conditions=2, samples=2, steps=2, guidance_scale=1.0, rows=4, timesteps=10, captioned=False)


@dataclass
class Share:
    """A stand-in: a student of (1 - ratio) of 1000 parameters, in as much of the time, or none above `most`."""

    ratio: float | None
    budget: dict | None
    most: float = 1.0
    knob = "ratio"


def search(**budget):
    calls = []

    def make(method):
        assert method.budget is None
        if method.ratio > method.most:
            raise InputError("too much")
        calls.append(method.ratio)
        return method.ratio

    def costs(ratio, name):
        return {"parameters": 1000, "latency_ratio": 1.0}[name] * (1 - ratio)

    most = budget.pop("most", 1.0)
    return (*least_within(Share(None, budget, most), make, costs, lambda name: costs(0, name)), calls)


def test_the_least_removal_within_all_bounds():
    ratio, found, calls = search(parameters=600)
    assert 0.4 <= ratio < 0.4 + 2**-HALVINGS and found == {"parameters": 1000 * (1 - ratio)} and len(calls) == HALVINGS
    ratio, found, _ = search(parameters=600, latency_ratio=0.3)
    assert 0.7 <= ratio < 0.7 + 2**-HALVINGS and set(found) == {"parameters", "latency_ratio"}
    assert search(parameters=600, latency_ratio=0.9)[0] == search(parameters=600)[0]
    assert search(parameters=600, most=0.45)[0] == pytest.approx(0.4, abs=2**-HALVINGS)


def test_out_of_reach_tells_the_nearest():
    with pytest.raises(
        InputError, match=r"parameters 100 cannot be reached; the nearest is parameters 500, at method.ratio=0.5"
    ):
        search(parameters=100, most=0.5)
    with pytest.raises(InputError, match=r"latency_ratio 0.1 cannot be reached; the nearest is latency_ratio 0.1015625, at"):
        search(latency_ratio=0.1, most=0.8984375)  # which would both be 0.10
    with pytest.raises(InputError, match=r"cannot be reached: too much"):
        search(parameters=100, most=0.0)


def test_each_value_that_is_tried_is_told():
    lines = []
    arguments = (lambda method: method.ratio, lambda ratio, name: 1000 * (1 - ratio), lambda name: 1000)
    least_within(Share(None, {"parameters": 600}), *arguments, tell=lines.append)
    assert len(lines) == HALVINGS and lines[0] == "method.ratio=0.5: parameters 500"


METHODS = {
    "magnitude": lambda: Magnitude(ratio=0.5),
    "random_layers": lambda: RandomLayers(ratio=0.5, seed=0),
    "diff_pruning": lambda: DiffPruning(0.5, None, "down", "magnitude", 0.0, 1, 4, (), 0),
}


@pytest.mark.parametrize("name", ["magnitude", "random_layers", pytest.param("diff_pruning", marks=pytest.mark.slow)])
def test_students_keep_to_their_budget(name):
    unet = small_unet("t2i", layers=1 if name == "diff_pruning" else 2)
    method = METHODS[name]()
    whole = {
        "parameters": count_parameters(unet),
        "size_mb": checkpoint_bytes(unet) / 1e6,
        "macs": count_macs(unet, *probe_inputs(unet)).total,
    }

    def costs(plan, bound):
        student = apply_plan(unet, plan)
        return count_macs(student, *probe_inputs(student)).total if bound == "macs" else size_of(student, bound)

    for bound, value in whole.items():
        limited = replace(method, **{method.knob: None}, budget={bound: 0.7 * value})

        def make(other):
            return other.plan(unet, None, "", None)

        _, found = least_within(limited, make, costs, whole.get)
        assert 0.35 * value < found[bound] <= 0.7 * value, bound
        forecast = forecast_within(limited, unet, SIZE)
        assert forecast.plan is not None
        if bound != "macs":
            assert size_of(apply_plan(unet, forecast.plan), bound) <= 0.7 * value
    with pytest.raises(InputError, match="exactly one of them"):
        replace(method, budget={"parameters": 1e5})
    with pytest.raises(InputError, match=r"method\.budget"):
        replace(method, **{method.knob: None}, budget={"parameter": 1e5})


def test_an_empty_budget_is_refused():
    with pytest.raises(InputError, match=r"method\.budget.*parameters, size_mb, macs, latency_ratio"):
        Magnitude(ratio=None, budget={})


def test_a_budget_that_the_teacher_keeps_to_is_told():
    unet = small_unet("t2i")
    with pytest.raises(InputError, match=r"the teacher keeps to parameters 1,000,000,000 as it is .*method=dense"):
        forecast_within(Magnitude(ratio=None, budget={"parameters": 1e9}), unet, SIZE)
    assert search(parameters=2000, latency_ratio=0.5)[0] == pytest.approx(0.5, abs=2**-HALVINGS)
    with pytest.raises(InputError, match="keeps to parameters 1,000, latency_ratio 1.00 as it is"):
        search(parameters=1000, latency_ratio=1.0)
