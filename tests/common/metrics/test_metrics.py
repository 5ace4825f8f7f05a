"""Distances, similarity and costs against independent computations."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from common.cost.latency import compare_latency
from common.cost.macs import checkpoint_bytes, count_macs, count_parameters
from common.metrics.distances import (
    caption_retrieval,
    feature_mse,
    frechet_distance,
    frechet_of,
    frechet_to_statistics,
    gaussian_kernel,
    kernel_distance,
    kernel_distance_of,
    kernel_distance_of_subsets,
    sliced_wasserstein_of,
)
from common.metrics.efficientnet import ImageFeatures, extract_features
from common.metrics.similarity import latent_mse, structural_similarity

GOLDEN = json.loads((Path(__file__).parents[2] / "golden_counts.json").read_text())


def two_sets():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(60, 5, generator=generator), 1.5 * torch.randn(50, 5, generator=generator) + 0.3


def test_frechet_equals_the_textbook_formula():
    real, fake = two_sets()
    a, b = real.double().numpy(), fake.double().numpy()
    root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-6)
    statistics = (real.double().mean(0), torch.cov(real.double().T))
    assert frechet_to_statistics(*statistics, fake) == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="as wide as the statistics"):
        frechet_to_statistics(*statistics, fake[:, :3])


@pytest.mark.parametrize("count", [3, 50])  # of 3 samples the covariance has no inverse
def test_frechet_equals_torchmetrics(count):
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Given(torch.nn.Identity):
        num_features = 5

    real, fake = two_sets()
    metric = FrechetInceptionDistance(feature=Given(), input_img_size=(5,)).set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(fake[:count].double(), real=False)
    assert frechet_distance(real, fake[:count]) == pytest.approx(metric.compute().item(), rel=1e-6)


def test_kernel_distance_equals_loops():
    real, fake = (values[:6] for values in two_sets())

    def kernel(x, y):
        return (float((x * y).sum()) / 5 + 1) ** 3

    within = [
        sum(kernel(s[i], s[j]) for i in range(6) for j in range(6) if i != j) / 30 for s in (real.double(), fake.double())
    ]
    between = sum(kernel(x, y) for x in real.double() for y in fake.double()) / 36
    assert kernel_distance(real, fake) == pytest.approx(sum(within) - 2 * between, rel=1e-6)
    mean, spread = kernel_distance_of_subsets(real, fake, 3, 6, seed=0)
    assert mean == pytest.approx(sum(within) - 2 * between, rel=1e-6) and spread == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("count", [4, 50])  # fewer than the features are wide, and more
def test_distances_of_some_samples_are_those_of_sets_of_them(count):
    real, fake = two_sets()
    fake = fake[:count]
    kept = (torch.arange(count) % 3 != 1).nonzero().flatten()
    statistics = (real.double().mean(0), torch.cov(real.double().T))
    assert frechet_of(*statistics, fake)(kept) == pytest.approx(frechet_distance(real, fake[kept]), rel=1e-6)
    assert kernel_distance_of(real, fake)(kept) == pytest.approx(kernel_distance(real, fake[kept]), rel=1e-9)


def test_a_gaussian_kernel_equals_loops_and_slices_equal_scipy():
    real, fake = (values[:6].double() for values in two_sets())
    x, y = (torch.nn.functional.normalize(values, dim=1) for values in (real, fake))

    def kernel(a, b):
        return math.exp(-float((a - b).square().sum()) / 200)

    within = [sum(kernel(s[i], s[j]) for i in range(6) for j in range(6) if i != j) / 30 for s in (x, y)]
    between = sum(kernel(a, b) for a in x for b in y) / 36
    found = kernel_distance_of(real, fake, gaussian_kernel)(torch.arange(6))
    assert found == pytest.approx(sum(within) - 2 * between, rel=1e-6)
    line = torch.randn(40, 1, generator=torch.Generator().manual_seed(1)).double()  # one dimension: each direction is +-1
    expected = (line.sort(dim=0).values - (2 * line + 1).sort(dim=0).values).square().mean()
    assert sliced_wasserstein_of(line, 2 * line + 1, 1)(torch.arange(40)) == pytest.approx(expected.item(), rel=1e-9)
    assert sliced_wasserstein_of(real, real)(torch.arange(6)) == pytest.approx(0, abs=1e-12)


def test_feature_mse_of_unrelated_samples_is_one():
    features = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 9.0)
    assert feature_mse(features[:2000], features[2000:]).mean() == pytest.approx(1, abs=0.05)
    assert not feature_mse(features, features).any()


def test_distances_refuse_what_they_cannot_compare():
    real, fake = two_sets()
    with pytest.raises(ValueError, match="width"):
        frechet_distance(real, fake[:, :3])
    with pytest.raises(ValueError, match="at least 2"):
        kernel_distance(real, fake[:1])


def test_retrieval_of_planted_and_of_unrelated_features():
    generator = torch.Generator().manual_seed(0)
    names = [f"thing {index}" for index in range(100)]
    real = torch.randn(200, 32, generator=generator)
    planted = real[:100] + 0.1 * torch.randn(100, 32, generator=generator)
    assert caption_retrieval(planted, names, real, names * 2, pool=64).all()
    unrelated = caption_retrieval(torch.randn(100, 32, generator=generator), names, real, names * 2, pool=64)
    assert unrelated.double().mean() < 0.1
    with pytest.raises(ValueError, match="no real image bears the name 'new'"):
        caption_retrieval(planted[:2], ["new", "thing 1"], real, names * 2)
    with pytest.raises(ValueError, match="among 101 names"):
        caption_retrieval(planted, names, real, names * 2, pool=101)


def test_distance_orders_real_lightly_and_heavily_noisy_images():
    from common.data.emoji import load_emoji

    images = load_emoji(Path(__file__).parents[3] / "data" / "emoji", "test", limit=60).images
    extractor = ImageFeatures()
    noise = torch.randint(-20, 21, images.shape, generator=torch.Generator().manual_seed(0))
    light, heavy = ((images.int() + factor * noise).clamp(0, 255).to(torch.uint8) for factor in (1, 6))
    real = extract_features(extractor, images[::2])
    assert real.shape == (120, 1280)
    distances = [frechet_distance(real, extract_features(extractor, s[1::2])) for s in (images, light, heavy)]
    assert distances == sorted(distances) and distances[2] > 1.5 * distances[0]


def test_similarity():
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert structural_similarity(images, images).tolist() == pytest.approx([1, 1], abs=1e-6)
    assert (structural_similarity(images, 255 - images) < 0.5).all()
    assert latent_mse(torch.zeros(2, 3, 1), torch.tensor([2.0, 1.0])[:, None, None]).tolist() == [4, 1]


@pytest.mark.parametrize("name", [name for name in GOLDEN if "UNet" in name])
def test_golden_counts(name):
    import diffusers

    from common.cost.macs import probe_inputs

    golden = GOLDEN[name]
    with torch.device("meta"):
        unet = getattr(diffusers, golden["class"])(**golden["config"])
    arguments, conditions = probe_inputs(unet)
    if conditions:
        conditions["encoder_hidden_states"] = torch.zeros(1, 77, unet.config.cross_attention_dim, device="meta")
    assert count_parameters(unet) == golden["params"]
    macs = count_macs(unet, arguments, conditions)
    assert (macs.total, macs.without_attention_products) == (golden["macs_total"], golden["macs_module"])


@pytest.mark.parametrize("name", [name for name in GOLDEN if "UNet" not in name])
def test_golden_sizes_of_autoencoders(name):
    import diffusers

    with torch.device("meta"):
        autoencoder = getattr(diffusers, GOLDEN[name]["class"])(**GOLDEN[name]["config"])
    assert count_parameters(autoencoder) == GOLDEN[name]["params"]


def test_checkpoint_bytes_and_latency():
    assert checkpoint_bytes(torch.nn.Linear(3, 2)) == 16
    counted = {"a": 0, "b": 0}

    def call(name):
        counted[name] += 1

    found = compare_latency({"a": lambda: call("a"), "b": lambda: call("b")}, "a", rounds=3, warmup=1)
    assert counted["a"] == counted["b"] >= 4
    assert found["a"].ratio == 1 and found["a"].time_reduction == 0 and found["b"].milliseconds > 0
