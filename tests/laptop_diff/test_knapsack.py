"""The knapsack is exact: against enumeration, and against dynamic programming over integer sizes; SDXL up to a plan."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from hydra.utils import instantiate
from omegaconf import OmegaConf

from common import apply_plan
from common.cost import count_parameters
from common.errors import InputError
from common.layer_pruner import lowest_layers
from laptop_diff import select_layers
from laptop_diff.knapsack import greedy_layers

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = json.loads((ROOT / "tests" / "golden_counts.json").read_text())


def by_enumeration(losses, sizes, budget):
    subsets = (subset for count in range(len(losses) + 1) for subset in combinations(range(len(losses)), count))
    return min(sum(losses[i] for i in s) for s in subsets if sum(sizes[i] for i in s) >= budget)


def by_dynamic_programming(losses, sizes, budget):
    best = np.full(budget + 1, np.inf)
    best[0] = 0.0
    for loss, size in zip(losses, sizes, strict=True):
        removed = np.concatenate([np.full(min(size, budget + 1), best[0]), best[: max(0, budget + 1 - size)]])
        best = np.minimum(best, removed[: budget + 1] + loss)  # cell b: least loss to remove at least b
    return best[budget]


@pytest.mark.parametrize("seed", range(6))
def test_against_enumeration(seed):
    random = np.random.default_rng(seed)
    losses, sizes = random.lognormal(0, 3, 11), random.lognormal(10, 1.5, 11)
    for share in (0.05, 0.33, 0.5, 0.9):
        budget = share * sizes.sum()
        chosen = select_layers(losses, sizes, budget)
        assert sizes[chosen].sum() >= budget
        assert sum(losses[chosen]) == pytest.approx(by_enumeration(losses, sizes, budget), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_against_dynamic_programming_at_the_size_of_sdxl(seed):
    random = np.random.default_rng(seed)
    losses, sizes = random.lognormal(0, 2, 87), random.integers(500, 20_000, 87)
    budget = int(0.5 * sizes.sum())
    chosen = select_layers(losses, sizes, budget)
    assert sizes[chosen].sum() >= budget
    expected = by_dynamic_programming(losses.tolist(), sizes.tolist(), budget)
    assert losses[chosen].sum() == pytest.approx(expected, rel=1e-9)


def test_exact_beats_or_equals_the_comparisons():
    random = np.random.default_rng(1)
    losses, sizes = random.lognormal(0, 2, 38), random.lognormal(8, 2, 38)
    budget = 0.5 * sizes.sum()
    exact = losses[select_layers(losses, sizes, budget)].sum()
    for other in (greedy_layers, lowest_layers):
        chosen = other(losses, sizes, budget)
        assert sizes[chosen].sum() >= budget and losses[chosen].sum() >= exact * (1 - 1e-12)
    assert losses[lowest_layers(losses, sizes, budget)].sum() > exact


def test_edges():
    assert select_layers([1.0, 2.0], [3, 4], 0) == []
    assert select_layers([1.0, 2.0], [3, 4], 7) == [0, 1]
    assert select_layers([0.0, 0.0], [3, 4], 4) in ([1], [0, 1])
    with pytest.raises(InputError, match="out of reach; all layers together have 7"):
        select_layers([1.0, 2.0], [3, 4], 8)
    with pytest.raises(InputError, match="layer 1 is not finite"):
        select_layers([1.0, float("nan")], [3, 4], 2)
    with pytest.raises(InputError, match="1 losses for 2 sizes"):
        select_layers([1.0], [3, 4], 2)


@pytest.mark.parametrize(("granularity", "unit"), [("transformer", "parameters"), ("transformer_block", "macs")])
def test_sdxl_on_the_meta_device_up_to_the_plan(granularity, unit):
    with torch.device("meta"):
        unet = UNet2DConditionModel(**GOLDEN["sdxl-base UNet @128"]["config"])
    settings = OmegaConf.load(ROOT / "conf" / "method" / "laptop_diff.yaml")
    method = instantiate(settings, unit=unit, granularity=granularity, criterion="random", seed=0, _convert_="all")
    plan = method.plan(unet, None, "sdxl", None)
    assert len(plan.scores) == (28 if granularity == "transformer" else 87)
    assert 0.5 <= plan.settings["ratio_reached"] < 0.6
    student = apply_plan(unet, plan)
    if unit == "parameters":
        left = count_parameters(student) / count_parameters(unet)
        assert left == pytest.approx(1 - plan.settings["ratio_reached"])


@pytest.mark.parametrize("seed", range(8))
def test_losses_of_very_different_scale(seed):
    random = np.random.default_rng(seed)
    losses = 10 ** random.uniform(-8, 0, 12)
    losses[0] = 1e6
    sizes = random.integers(1, 100, 12).astype(float)
    for share in (0.1, 0.4, 0.8):
        budget = share * sizes[1:].sum()
        assert losses[select_layers(losses, sizes, budget)].sum() == pytest.approx(
            by_enumeration(losses, sizes, budget), rel=1e-6
        )


def test_negative_losses_and_the_largest_budget():
    assert select_layers([-1, -2, -3], [1, 1, 1], 1) == [0, 1, 2]
    assert select_layers([-1.0, 5.0, 1.0], [1, 4, 2], 3) == [0, 2]
    assert select_layers([1.0, 2.0, 3.0], [0.1, 0.2, 0.3], 0.1 + 0.2 + 0.3) == [0, 1, 2]
    assert select_layers([0.0, 0.0, 1.0], [3.0, 1.0, 9.0], 2.0) in ([0], [0, 1])


def test_free_layers_that_the_budget_does_not_need_stay():
    settings = OmegaConf.load(ROOT / "conf" / "method" / "laptop_diff.yaml")
    method = instantiate(settings, seed=0, _convert_="all")
    assert method.select([-0.1, -0.2, -0.3, 5.0], [4.0, 3.0, 2.0, 1.0], 3.0) == [0]
    assert method.select([-0.1, -0.2, 5.0], [1.0, 4.0, 1.0], 4.0) == [1]
    assert method.select([-0.1, 0.5, 0.1], [1.0, 4.0, 4.0], 5.0) == [0, 2]
