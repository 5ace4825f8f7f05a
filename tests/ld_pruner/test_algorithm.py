"""Equations 1 to 7 against loops over single elements."""

import math

import pytest
import torch

from ld_pruner import latent_score


def by_hand(original, modified, formula, squared, correction):
    scores = []
    for before, after in zip(original.tolist(), modified.tolist(), strict=True):
        mean_square = std_square = 0.0
        for element in range(len(before[0])):
            stats = []
            for latents in (before, after):
                values = [latent[element] for latent in latents]
                mean = sum(values) / len(values)
                variance = sum((value - mean) ** 2 for value in values) / (len(values) - correction)
                stats.append((mean, math.sqrt(variance)))
            mean_square += (stats[0][0] - stats[1][0]) ** 2
            std_square += (stats[0][1] - stats[1][1]) ** 2
        mean, std = (v if squared else math.sqrt(v) for v in (mean_square, std_square))
        scores.append({"sum": mean + std, "product": mean * std, "mean_only": mean, "std_only": std}[formula])
    return scores


@pytest.mark.parametrize("formula", ["sum", "product", "mean_only", "std_only"])
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("correction", [0, 1])
def test_equals_the_equations_element_by_element(formula, squared, correction):
    generator = torch.Generator().manual_seed(0)
    original = torch.randn(3, 4, 6, generator=generator)
    modified = original * 1.3 + torch.randn(3, 4, 6, generator=generator)
    expected = by_hand(original, modified, formula, squared, correction)
    found = latent_score(original.unflatten(2, (2, 3)), modified.unflatten(2, (2, 3)), formula, squared, correction)
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_unchanged_latents_score_zero():
    latents = torch.randn(2, 3, 4, 5, 5)
    assert latent_score(latents, latents.clone()).tolist() == [0, 0]


def test_a_shift_moves_the_mean_alone():
    latents = torch.randn(1, 5, 4, 2, 2)
    assert latent_score(latents, latents + 0.5, "std_only").item() == pytest.approx(0, abs=1e-6)
    assert latent_score(latents, latents + 0.5, "mean_only").item() == pytest.approx(0.5 * 4, rel=1e-5)


def test_bad_input():
    latents = torch.zeros(2, 1, 4)
    with pytest.raises(ValueError, match="sum, product, mean_only, std_only"):
        latent_score(latents, latents, "total")
    with pytest.raises(ValueError, match=r"\(conditions, samples"):
        latent_score(latents, latents[:1])
    with pytest.raises(ValueError, match="too few"):
        latent_score(latents, latents, correction=1)
