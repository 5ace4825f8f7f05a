"""The knapsack is exact: against enumeration, and against dynamic programming over integer sizes; SDXL up to a plan."""

import json
import random
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from hydra.utils import instantiate
from omegaconf import OmegaConf

from common import apply_plan
from common.cost.macs import count_parameters
from common.errors import InputError
from common.pruning.layer_pruner import lowest_layers
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
    with pytest.raises(InputError, match="out of reach"):
        select_layers([1.0, 2.0], [10**15, 10**15], 2 * 10**15 + 1)
    for values in ([1.0, float("nan")], [1.0, float("inf")]):
        with pytest.raises(InputError, match="the loss of layer 1 is not finite"):
            select_layers(values, [3, 4], 2)
        with pytest.raises(InputError, match="the size of layer 1 is not finite"):
            select_layers([3, 4], values, 2)
        with pytest.raises(InputError, match="a finite number is needed"):
            select_layers([3, 4], [3, 4], values[1])
    with pytest.raises(InputError, match="layer 0 has a negative size"):
        select_layers([3, 4], [-1, 4], 2)
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


def exact_least(losses, sizes, budget):
    """The least sum by enumeration, in fractions."""
    losses, sizes = [Fraction(loss) for loss in losses], [Fraction(size) for size in sizes]
    best = None
    for bits in range(1 << len(losses)):
        chosen = [index for index in range(len(losses)) if bits >> index & 1]
        if sum(sizes[index] for index in chosen) >= Fraction(budget):
            loss = sum((losses[index] for index in chosen), Fraction())
            best = loss if best is None else min(best, loss)
    return best


LOSSES = {
    "of one scale": lambda draw: draw.uniform(0, 1),
    "of 600 orders": lambda draw: draw.random() * 10 ** draw.uniform(-300, 300),
    "whole": lambda draw: draw.randint(0, 3),
    "ends": lambda draw: draw.choice([0, 1e-300, 1.0, 1.0, 1e300]),
    "of both signs": lambda draw: draw.uniform(-1, 1),
}
SIZES = {
    "of 12 orders": lambda draw: int(10 ** draw.uniform(0, 12)),
    "few": lambda draw: draw.choice([0, 320, 640, 1280]),
    "ends": lambda draw: draw.choice([0, 1, 2, 10**12]),
    "times": lambda draw: draw.lognormvariate(0, 2),
}


@pytest.mark.parametrize("losses", LOSSES)
@pytest.mark.parametrize("sizes", SIZES)
def test_exact_at_every_ratio_and_silent(losses, sizes, capfd):
    draw = random.Random(f"{losses} {sizes}")
    for _ in range(40):
        count = draw.randint(1, 8)
        cost, size = [LOSSES[losses](draw) for _ in range(count)], [SIZES[sizes](draw) for _ in range(count)]
        budget = draw.choice([draw.uniform(0, 1) * sum(size), sum(draw.sample(size, draw.randint(0, count)))])
        chosen = select_layers(cost, size, budget)
        assert sum(Fraction(size[index]) for index in chosen) >= Fraction(min(budget, sum(map(Fraction, size))))
        assert sum(Fraction(cost[index]) for index in chosen) == exact_least(cost, size, min(budget, sum(map(Fraction, size))))
    assert capfd.readouterr() == ("", "")


def test_a_layer_a_million_times_as_large_is_no_reason_to_take_it():
    assert select_layers([1, 5, 2], [1, 10**6, 1], 1) == [0]
    assert select_layers([1.0, 5.0, 2.0], [1, 10**6, 1], 10**6) == [1]
    assert select_layers([1.0, 5.0, 2.0], [1, 10**6, 1], 10**6 + 1) == [0, 1]
    assert select_layers([1e-300, 1e300], [10**12, 10**12], 1) == [0]


def test_five_hundred_layers_of_every_scale(capfd):
    numbers = np.random.default_rng(4)
    losses, sizes = 10 ** numbers.uniform(-9, 0, 500), (10 ** numbers.uniform(0, 12, 500)).astype(np.int64)
    budget = int(sizes.sum()) // 2
    chosen = select_layers(losses, sizes, budget)
    assert sum(int(sizes[index]) for index in chosen) >= budget
    # no layer can come back, and no two can change places for a smaller sum
    spare = sum(int(sizes[index]) for index in chosen) - budget
    left = sorted(set(range(500)) - set(chosen))
    assert all(sizes[index] > spare for index in chosen)
    assert not any(losses[i] < losses[j] and sizes[j] - sizes[i] <= spare for j in chosen for i in left)
    assert capfd.readouterr() == ("", "")


def test_losses_in_proportion_to_unrelated_sizes_end_near_the_least(monkeypatch):
    monkeypatch.setattr("laptop_diff.knapsack.MANY", 2_000)
    monkeypatch.setattr("laptop_diff.knapsack.BEAM", 50)
    draw = random.Random(0)
    sizes = [draw.randint(10**11, 10**12) for _ in range(40)]
    budget = sum(sizes) // 3
    removed = sum(sizes[index] for index in select_layers(sizes, sizes, budget))  # losses are the sizes: at least the budget
    assert budget <= removed < budget * (1 + 1e-3)


def test_negative_losses_and_the_largest_budget():
    assert select_layers([-1, -2, -3], [1, 1, 1], 1) == [0, 1, 2]
    assert select_layers([-1.0, 5.0, 1.0], [1, 4, 2], 3) == [0, 2]
    assert select_layers([1.0, 2.0, 3.0], [0.1, 0.2, 0.3], 0.1 + 0.2 + 0.3) == [0, 1, 2]
    assert select_layers([0.0, 0.0, 1.0], [3.0, 1.0, 9.0], 2.0) in ([0], [0, 1])


def test_free_layers_that_the_budget_does_not_need_stay():
    settings = OmegaConf.load(ROOT / "conf" / "method" / "laptop_diff.yaml")
    method = instantiate(settings, seed=0, _convert_="all")
    assert method.select([-0.1, -0.2, -0.3, 5.0], [4.0, 3.0, 2.0, 1.0], 3.0) == [1]  # as good as [0], and nothing too much
    assert method.select([-0.1, -0.2, 5.0], [1.0, 4.0, 1.0], 4.0) == [1]
    assert method.select([-0.1, 0.5, 0.1], [1.0, 4.0, 4.0], 5.0) == [0, 2]
