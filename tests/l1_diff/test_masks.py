"""Exact counts, patterns, and the authors' own choice of weights."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from common.errors import InputError
from l1_diff import reference_masks
from l1_diff.masks import lowest, pattern_masks, prunable_weights, sparsity_masks, threshold_masks


def scores(*shapes):
    generator = torch.Generator().manual_seed(1)
    return {f"site{index}": torch.rand(shape, generator=generator) for index, shape in enumerate(shapes)}


@pytest.mark.parametrize("amount", [0, 0.1, 0.3, 0.5, 0.999])
def test_exact_counts(amount):
    found = scores((7, 3, 3, 3), (5, 11))
    layer = sparsity_masks(found, amount, "layer")
    assert [int((~mask).sum()) for mask in layer.values()] == [round(amount * 189), round(amount * 55)]
    everywhere = sparsity_masks(found, amount, "global")
    assert sum(int((~mask).sum()) for mask in everywhere.values()) == round(amount * 244)
    assert all(mask.shape == found[site].shape and mask.dtype == torch.bool for site, mask in everywhere.items())


def test_the_lowest_go_and_ties_do_not_change_the_count():
    found = {"small": torch.tensor([0.1, 0.2, 0.3]), "large": torch.tensor([1.0, 2.0, 3.0])}
    masks = sparsity_masks(found, 0.5, "global")
    assert masks["small"].tolist() == [False] * 3 and masks["large"].tolist() == [True] * 3
    assert sparsity_masks(found, 0.34, "layer")["large"].tolist() == [False, True, True]
    assert int(lowest(torch.zeros(10), 4).sum()) == 4 and int(lowest(torch.zeros(10), 0).sum()) == 0


def test_threshold():
    masks = threshold_masks({"a": torch.tensor([0.1, 0.5, 0.9])}, 0.5)
    assert masks["a"].tolist() == [False, True, True]
    with pytest.raises(InputError, match="every weight is below it; the highest score is 0.9"):
        threshold_masks({"a": torch.tensor([0.1, 0.5, 0.9])}, 1.0)


def test_two_of_four_keeps_the_most_important_of_each_group():
    found = scores((6, 8), (4, 4, 3, 3))
    masks = pattern_masks(found, "2:4")
    for site, mask in masks.items():
        groups, values = mask.flatten(1).reshape(-1, 4), found[site].flatten(1).reshape(-1, 4)
        assert (groups.sum(1) == 2).all()
        for kept, score in zip(groups, values, strict=True):
            assert score[kept].min() > score[~kept].max()
    assert (pattern_masks(found, "1:4")["site0"].reshape(-1, 4).sum(1) == 1).all()


def test_patterns_that_cannot_be():
    with pytest.raises(InputError, match="inputs of site1, site2 are no multiple of 4"):
        pattern_masks(scores((4, 8), (4, 3), (2, 3, 3, 3)), "2:4")
    for pattern in ("4:2", "4:4", "0:4", "half", 124):
        with pytest.raises(InputError, match="N:M"):
            pattern_masks(scores((4, 8)), pattern)


def test_reference_masks_are_torchs_own(tiny_teacher):
    unet = copy.deepcopy(tiny_teacher.denoiser)
    masks = reference_masks(unet, 0.3)
    sites = [name for name, module in unet.named_modules() if isinstance(module, nn.Conv2d)]
    assert sorted(masks) == sorted(sites)
    for site in sites:
        module = prune.l1_unstructured(unet.get_submodule(site), "weight", 0.3)
        assert torch.equal(module.weight_mask.bool(), masks[site]), site


def test_which_weights(tiny_teacher):
    unet = tiny_teacher.denoiser
    conv, linear, both = (prunable_weights(unet, kinds) for kinds in (["conv"], ["linear"], ["conv", "linear"]))
    assert len(both) == len(conv) + len(linear) and not conv.keys() & linear.keys()
    assert all(isinstance(unet.get_submodule(site), nn.Linear) for site in linear)
    without = prunable_weights(unet, ["conv", "linear"], ["conv_*", "time_embedding.*"])
    assert both.keys() - without.keys() == {"conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"}


@pytest.mark.parametrize(
    ("modules", "exclude", "expected"),
    [
        (["conv", "norm"], [], "'norm' is none of conv, linear"),
        (["conv"], ["nowhere.*"], "'nowhere.\\*' matches no weight"),
        (["conv"], ["*"], "leave no weight"),
        ([], [], "leave no weight"),
    ],
)
def test_bad_choices_of_weights(tiny_teacher, modules, exclude, expected):
    with pytest.raises(InputError, match=expected):
        prunable_weights(tiny_teacher.denoiser, modules, exclude)


@pytest.mark.parametrize("amount", [1, 1.5, -0.1, float("nan")])
def test_bad_amounts(amount, tiny_teacher):
    with pytest.raises(InputError, match="from 0 to below 1"):
        reference_masks(tiny_teacher.denoiser, amount)
    with pytest.raises(InputError, match="none of global, layer"):
        sparsity_masks(scores((2, 2)), 0.5, "block")
