"""Intervals of figures of samples hold what they say."""

import math

import pytest
import torch

from common.metrics.distances import frechet_of, kernel_distance_of
from common.metrics.jackknife import GROUPS, Estimate, estimate, kept_samples, mean_of, student_t


def draws(seed, count=200, width=6):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_each_sample_is_left_out_once():
    everything, *without = kept_samples(50)
    assert everything.tolist() == list(range(50)) and len(without) == GROUPS
    assert sorted(i for kept in without for i in set(range(50)) - set(kept.tolist())) == list(range(50))
    assert [len(kept_samples(count)) for count in (2, 5, 6, 16, 39, 40)] == [1, 1, 4, 9, 20, 21]


def test_of_a_mean_it_is_the_textbook_interval():
    values = draws(0, 20, 1).double().flatten()  # a sample in each group is the plain jackknife: that of the mean is exact
    groups = tuple(values[torch.arange(20) != place].mean().item() for place in range(20))
    found = Estimate(values.mean().item(), groups)
    assert found.standard_error == pytest.approx(values.std().item() / math.sqrt(20), rel=1e-9)
    low, high = found.interval
    assert high - low == pytest.approx(2 * 2.093024 * values.std().item() / math.sqrt(20), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("distance", ["kernel", "frechet"])
def test_it_covers_what_other_samples_give(distance):
    """Of the difference between two models that are sampled from equal seeds; its truth is the mean over many seeds."""
    real = draws(1, 2000)
    statistics = (real.double().mean(0), torch.cov(real.double().T))

    def difference(seed):
        noise = draws(seed)
        models = (noise + 0.1, 1.1 * noise + 0.2)
        of = [kernel_distance_of(real, m) if distance == "kernel" else frechet_of(*statistics, m) for m in models]
        one, other = (estimate(lambda kept, each=each: {"d": each(kept)}, len(noise))["d"] for each in of)
        return one - other

    found = [difference(seed) for seed in range(2, 82)]
    truth = sum(each.value for each in found) / len(found)
    covered = sum(low < truth < high for low, high in (each.interval for each in found)) / len(found)
    assert covered >= 0.85  # the cubes of the kernel have long tails
    spread = torch.tensor([each.value for each in found]).std().item()
    assert sum(each.standard_error for each in found) / len(found) == pytest.approx(spread, rel=0.25)


def test_few_samples_have_no_interval_and_unequal_groups_no_difference():
    few = estimate(lambda kept: {"d": float(len(kept))}, 5)["d"]
    assert few.value == 5 and few.replicates == () and all(math.isnan(end) for end in few.interval)
    with pytest.raises(ValueError):
        few - Estimate(1.0, (1.0, 2.0))


def test_mean_of_estimates():
    found = mean_of([Estimate(1.0, (1.0, 3.0)), Estimate(3.0, (2.0, 5.0))])
    assert found == Estimate(2.0, (1.5, 4.0)) and student_t(2) == pytest.approx(4.302653, rel=1e-6)
