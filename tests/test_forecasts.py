"""What methods tell before they run, against what they then do on a small teacher."""

import copy

import pytest
import torch
from hydra.utils import instantiate

from common.cost.macs import count_parameters
from common.pruning.forecast import CalibrationSize
from common.pruning.plan import apply_plan
from tests.test_conf import compose_config


@pytest.fixture(scope="session")
def tiny_teacher_folder(four_level_teacher_folder):
    return four_level_teacher_folder


SIZE = CalibrationSize(  # of tests/conftest.py's data_calibration
    conditions=3, samples=2, steps=3, guidance_scale=2.0, rows=6, timesteps=1000, captioned=True
)


def method(name, *overrides):
    return instantiate(compose_config("config", f"method={name}", *overrides).method, _convert_="all")


def looked(found, unet):
    """The forecast of a method, from the meta device."""
    return found.forecast(copy.deepcopy(unet).to("meta"), SIZE)


def counted(found, unet, calibration):
    """Samples that pass through the denoiser, forward and with gradients, while the method plans."""
    forward, with_gradients = 0, 0

    def count(_module, arguments, keywords):
        nonlocal forward, with_gradients
        rows = len(arguments[0] if arguments else keywords["sample"])
        forward += rows
        with_gradients += rows * torch.is_grad_enabled()

    # by class and not by object: Diff-Pruning scores a copy
    original = type(unet).forward

    def forward_counting(self, *arguments, **keywords):
        count(self, arguments, keywords)
        return original(self, *arguments, **keywords)

    type(unet).forward = forward_counting
    try:
        plan = found.plan(unet, calibration, "teacher", None)
    finally:
        type(unet).forward = original
    return forward, with_gradients, plan


def test_laptop_diff_counts_its_forward_passes(tiny_teacher, data_calibration):
    found = method("laptop_diff", "method.batch_size=6", "method.copies=1")
    look = looked(found, tiny_teacher.denoiser)
    forward, _, plan = counted(found, tiny_teacher.denoiser, data_calibration)
    assert (look.forward, look.backward) == (forward, 0)
    assert look.batch == 6
    wanted = 0.5 * count_parameters(tiny_teacher.denoiser)
    for student in (apply_plan(tiny_teacher.denoiser, plan), apply_plan(tiny_teacher.denoiser, look.plan)):
        assert count_parameters(student) <= wanted


@pytest.mark.exhaustive
def test_laptop_diff_counts_roll_outs_where_samples_are_compared(tiny_teacher, data_calibration):
    found = method("laptop_diff", "method.criterion=alignment", "method.batch_size=6", "method.copies=1")
    forward, _, _ = counted(found, tiny_teacher.denoiser, data_calibration)
    assert looked(found, tiny_teacher.denoiser).forward == forward


@pytest.mark.parametrize("scoring", ["exact", "screened"])
@pytest.mark.exhaustive
def test_ld_pruner_takes_no_more_than_told(tiny_teacher, data_calibration, scoring):
    found = method("ld_pruner", "method.k=3", f"method.scoring={scoring}")
    look = looked(found, tiny_teacher.denoiser)
    forward, _, _ = counted(found, tiny_teacher.denoiser, data_calibration)
    probe = 1  # list_operators looks at shapes by one pass
    if scoring == "exact":
        assert forward == look.forward + probe
    else:
        assert SIZE.edited_latents < forward <= look.forward + probe


@pytest.mark.exhaustive
def test_ld_pruner_tells_between_what_sizes_k_operators_lie(tiny_teacher):
    found = method("ld_pruner", "method.k=3")
    look = looked(found, tiny_teacher.denoiser)
    assert len(look.plan.edits) == 3
    assert "3 operators drawn at random; 3 of them are from 0% to " in look.note
    sized = looked(method("ld_pruner", "method.k=null", "method.ratio=0.3"), tiny_teacher.denoiser)
    student = apply_plan(copy.deepcopy(tiny_teacher.denoiser).to("meta"), sized.plan)
    assert count_parameters(student) <= 0.7 * count_parameters(tiny_teacher.denoiser)


def test_l1_diff_passes_its_rows_back_and_forth(tiny_teacher, data_calibration):
    found = method("l1_diff", "method.batch_size=4")
    look = looked(found, tiny_teacher.denoiser)
    forward, with_gradients, _ = counted(found, tiny_teacher.denoiser, data_calibration)
    assert (look.forward, look.backward) == (forward, with_gradients) == (6, 6)
    assert looked(method("l1_diff", "method.beta=0"), tiny_teacher.denoiser).forward == 0
    assert looked(method("l1_diff", "method.parts=[autoencoder]"), tiny_teacher.denoiser).forward == 0


def test_what_l1_diff_keeps_beside_the_weights(tiny_teacher, data_calibration):
    """A mask and a running gradient for each prunable weight; told for all parameters, the few others included."""
    found = method("l1_diff")
    plan = found.plan(tiny_teacher.denoiser, data_calibration, "teacher", None)
    (callback,) = found.training_callbacks(tiny_teacher.denoiser, plan)
    weights = sum(mask.numel() for mask in callback.masks.values())
    kept = sum(mask.nbytes for mask in callback.masks.values()) + callback.keeps_gradients * 4 * weights
    assert looked(found, tiny_teacher.denoiser).per_parameter * weights == kept
    still = method("l1_diff", "method.regrowth=0")
    assert looked(still, tiny_teacher.denoiser).per_parameter == 1
    assert not still.training_callbacks(tiny_teacher.denoiser, plan)[0].keeps_gradients


@pytest.mark.exhaustive
def test_diff_pruning_passes_every_timestep(tiny_teacher, data_calibration):
    found = method("diff_pruning", "method.every=250", "method.threshold=0", "method.rows=5", "method.ratio=0.5")
    look = looked(found, tiny_teacher.denoiser)
    _, with_gradients, plan = counted(found, tiny_teacher.denoiser, data_calibration)
    traced = with_gradients - 20  # building the graph of dependencies takes passes of one sample
    assert (look.forward, look.backward) == (20, 20)
    assert 0 < traced <= 2
    assert look.exact
    students = [apply_plan(tiny_teacher.denoiser, plan), apply_plan(copy.deepcopy(tiny_teacher.denoiser).to("meta"), look.plan)]
    assert count_parameters(students[0]) == count_parameters(students[1])


@pytest.mark.parametrize("name", ["bk_sdm", "dense", "random_layers"])
def test_methods_without_scores_tell_their_very_plan(tiny_teacher, name):
    found = method(name)
    look = looked(found, tiny_teacher.denoiser)
    plan = found.plan(tiny_teacher.denoiser, None, "", None)
    assert look.exact
    assert look.forward == look.backward == 0
    assert [edit.site for edit in look.plan.edits] == [edit.site for edit in plan.edits]


def test_magnitude_s_size_is_told_without_weights(tiny_teacher):
    look = looked(method("magnitude"), tiny_teacher.denoiser)
    assert not look.exact
    assert look.forward == 0
    student = apply_plan(copy.deepcopy(tiny_teacher.denoiser).to("meta"), look.plan)
    assert count_parameters(student) <= 0.5 * count_parameters(tiny_teacher.denoiser)
