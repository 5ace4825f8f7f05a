"""Magnitude and random layers: the wanted share goes, whatever the calibration."""

import pytest
import torch

from baselines.dense import Dense
from baselines.magnitude import Magnitude
from baselines.random_layers import RandomLayers
from common.cost.macs import count_parameters
from common.errors import InputError
from common.pruning.layers import mean_magnitude
from common.pruning.plan import apply_plan

SHARED = {"unit": "parameters", "granularity": "transformer", "width_changing": "shortcut", "exclude": ()}


@pytest.mark.parametrize(
    "method", [Magnitude(0.3, **SHARED), RandomLayers(0.3, **SHARED, seed=0)], ids=lambda m: type(m).__name__
)
def test_the_wanted_share_is_gone(tiny_teacher, method):
    unet = tiny_teacher.denoiser
    plan = method.plan(unet, None, "tiny", None)
    gone = 1 - count_parameters(apply_plan(unet, plan)) / count_parameters(unet)
    assert gone == pytest.approx(plan.settings["ratio_reached"]) and gone >= 0.3
    assert method.plan(unet, None, "tiny", None) == plan
    lowest = min(plan.scores, key=plan.scores.get)
    assert lowest in {edit.site for edit in plan.edits}


def test_magnitude_takes_the_smallest_weights(tiny_teacher):
    unet = tiny_teacher.denoiser
    plan = Magnitude(0.3, **SHARED).plan(unet, None, "tiny", None)
    chosen = {edit.site for edit in plan.edits}
    assert max(plan.scores[site] for site in chosen) <= min(v for site, v in plan.scores.items() if site not in chosen)
    assert all(plan.scores[site] == mean_magnitude(unet.get_submodule(site)) for site in chosen)


def test_another_seed_draws_other_layers(tiny_teacher):
    plans = [RandomLayers(0.3, **SHARED, seed=seed).plan(tiny_teacher.denoiser, None, "tiny", None) for seed in range(3)]
    assert len({tuple(edit.site for edit in plan.edits) for plan in plans}) > 1


def test_a_ratio_out_of_reach_is_told(tiny_teacher):
    with pytest.raises(InputError, match=r"all layers together are 0\.\d+"):
        Magnitude(0.99, **SHARED).plan(tiny_teacher.denoiser, None, "tiny", None)


def test_a_score_that_is_no_number_is_told(tiny_teacher):
    site = "down_blocks.0.resnets.1"
    tiny_teacher.denoiser.get_submodule(site).conv1.weight.data[0] = float("nan")
    with pytest.raises(InputError, match=rf"magnitude: the score of {site} is nan"):
        Magnitude(0.3, **SHARED).plan(tiny_teacher.denoiser, None, "tiny", None)


def test_dense_removes_nothing(tiny_teacher):
    student = apply_plan(tiny_teacher.denoiser, Dense().plan(tiny_teacher.denoiser, None, "tiny", None))
    state = student.state_dict()
    assert state.keys() == tiny_teacher.denoiser.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in tiny_teacher.denoiser.state_dict().items())
