"""A student that is pruned again: the plan of both applies to the network that the first one was for."""

import pytest
import torch

from common.cost.macs import count_parameters
from common.errors import InputError
from common.models.loading import load_denoiser
from common.pruning.plan import Edit, Plan, apply_plan
from common.pruning.plan_table import parameters_that_go, plan_table
from ld_pruner.initial_weights import initial_weights
from ld_pruner.operators import list_operators
from tests.small_students import expected, numbers, plan_of, small_unet

pytestmark = pytest.mark.slow

KINDS = ("laptop_diff", "ld_pruner", "diff_pruning")
PAIRS = [(first, later) for first in KINDS for later in KINDS if (first, later) != ("ld_pruner", "ld_pruner")]  # whose sites go
LAYERS = Plan("laptop_diff", (Edit("down_blocks.1.resnets.1", "identity"), Edit("up_blocks.1.resnets.2", "shortcut")))


def second_plan(kind, student):
    """A plan of that kind for a student; of single layers those that no other plan here names."""
    return LAYERS if kind == "laptop_diff" else plan_of(kind, student)


@pytest.mark.parametrize(("first", "later"), PAIRS)
def test_one_plan_does_what_both_do(first, later, tmp_path):
    unet = small_unet(layers=2)
    plan = plan_of(first, unet)
    between = apply_plan(unet, plan)
    after = second_plan(later, between)
    student = apply_plan(between, after)
    inputs = numbers(unet, 2, 4, 4)
    assert not torch.allclose(torch.tensor(expected(student, inputs)), torch.tensor(expected(between, inputs)))
    both = plan.then(after)
    at_once = apply_plan(unet, both)
    assert type(at_once) is type(student)
    assert (expected(at_once, inputs) == expected(student, inputs)).all()
    student.save_pretrained(tmp_path / "student")
    assert (expected(load_denoiser(tmp_path / "student"), inputs) == expected(student, inputs)).all()
    both.save(tmp_path)
    assert (expected(apply_plan(unet, Plan.load(tmp_path)), inputs) == expected(student, inputs)).all()
    carried = Plan.from_dict(student.config.plan)
    assert [edit.site for edit in carried.edits] == [edit.site for edit in both.edits]


@pytest.mark.parametrize(("first", "later"), [*((kind, None) for kind in (*KINDS, "bk_sdm")), *PAIRS])
def test_the_table_adds_up(first, later):
    unet = small_unet(layers=2)
    plan = plan_of(first, unet)
    if later is not None:
        plan = plan.then(second_plan(later, apply_plan(unet, plan)))
    gone = parameters_that_go(plan, unet)
    assert sum(gone) == count_parameters(unet) - count_parameters(apply_plan(unet, plan)) and min(gone) >= 0
    told = plan_table(plan, unet)
    assert told.splitlines()[0] == f"{plan.method}: {len(gone)} edits" and len(told.splitlines()) == len(gone) + 2


def test_what_has_been_narrowed_can_be_replaced():
    unet = small_unet(layers=2)
    plan = plan_of("diff_pruning", unet)
    between = apply_plan(unet, plan)
    operators = {operator.site: operator for operator in list_operators(between)}
    chosen = [operators["down_blocks.1.resnets.0.conv1"], operators["down_blocks.0.downsamplers.0"]]
    after = Plan("x", tuple(each.edit for each in chosen), tensors=initial_weights(between, chosen, "random", None, seed=0))
    assert [edit.operation for edit in after.edits] == ["conv1x1", "avg_pool"]
    inputs = numbers(unet, 2, 4, 4)
    student = apply_plan(between, after)
    assert (expected(apply_plan(unet, plan.then(after)), inputs) == expected(student, inputs)).all()


def test_trained_weights_stay():
    """What is pruned again keeps the weights of the student, not those of the network that it came from."""
    unet = small_unet(layers=2)
    between = apply_plan(unet, plan_of("ld_pruner", unet))
    with torch.no_grad():
        for weight in between.parameters():
            weight.add_(0.1)
    student = apply_plan(between, LAYERS)
    own = between.state_dict()
    assert all(torch.equal(weight, own[name]) for name, weight in student.state_dict().items())


def test_plans_that_cannot_be_put_together():
    unet = small_unet(layers=2)
    masks = Plan("l1_diff", (Edit("conv_in", "mask", {"pruned": 1}),))
    for pair in ((LAYERS, masks), (masks, LAYERS), (plan_of("bk_sdm", unet), LAYERS)):
        with pytest.raises(InputError, match="cannot be put together"):
            pair[0].then(pair[1])
    student = apply_plan(unet, plan_of("laptop_diff", unet))
    with pytest.raises(InputError, match="bk_sdm is for an unpruned U-Net"):
        apply_plan(student, plan_of("bk_sdm", unet))
    with pytest.raises(InputError, match=r"edits 'up_blocks\.0\.resnets\.0\.conv1', which this"):
        apply_plan(student, Plan("x", (Edit("up_blocks.0.resnets.0.conv1", "identity"),)))
    channels = plan_of("diff_pruning", unet)
    for first in (channels, plan_of("ld_pruner", unet)):  # both plans are of the original
        with pytest.raises(InputError, match="is not of the earlier one's student"):
            first.then(channels)
    student = apply_plan(unet, plan_of("ld_pruner", unet))
    with pytest.raises(InputError, match=r"down_blocks\.0\.downsamplers\.0 is narrowed"):
        apply_plan(student, Plan("x", (Edit("down_blocks.0.downsamplers.0", "resize", {"channels": 4}),)))
