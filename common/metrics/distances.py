"""Distances between sets of features, and how often a sample is nearest to its own caption's images."""

from collections.abc import Callable

import numpy as np
import torch

from common.errors import InputError
from common.metrics.jackknife import Figure
from common.runtime.seeding import generator_for

Kernel = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def check_pair(real: torch.Tensor, fake: torch.Tensor) -> None:
    """InputError unless both are (count, features) of equal width with at least two rows."""
    if real.dim() != 2 or fake.dim() != 2 or real.shape[1] != fake.shape[1]:
        raise InputError(f"features of shapes {tuple(real.shape)} and {tuple(fake.shape)}: both must be (count, width).")
    if min(len(real), len(fake)) < 2:
        raise InputError(f"a distance needs at least 2 samples on each side, not {len(real)} and {len(fake)}.")


def frechet_distance(real: torch.Tensor, fake: torch.Tensor) -> float:
    """Fréchet distance of the Gaussians fitted to two feature sets (Heusel et al. 2017).

    real, fake: (count, width). The value falls with the number of samples: compare equal counts only.
    """
    check_pair(real, fake)
    there = real.double()
    return frechet_to_statistics(there.mean(0), there.T.cov(), fake)


def frechet_to_statistics(mean: torch.Tensor, covariance: torch.Tensor, features: torch.Tensor) -> float:
    """Fréchet distance of the Gaussian of `features` (count, width) to that of mean (width) and covariance (width, width)."""
    return frechet_of(mean, covariance, features)(torch.arange(len(features)))


def frechet_of(mean: torch.Tensor, covariance: torch.Tensor, features: torch.Tensor) -> Figure:
    """As frechet_to_statistics, of those of the features whose numbers are given.

    The trace of the root of the covariances' product is the sum of the roots of the eigenvalues of F C F^T / (count - 1), with
    F the centred features, or where there are more of them than their width the R of F's QR decomposition.
    """
    there, width = features.double(), len(mean)
    if there.dim() != 2 or len(there) < 2 or there.shape[1] != width or covariance.shape != (width, width):
        given = f"features {tuple(there.shape)}, mean {tuple(mean.shape)}, covariance {tuple(covariance.shape)}"
        raise InputError(f"{given}: at least 2 features as wide as the statistics are needed.")
    mean, covariance = mean.double(), covariance.double()
    wide = len(there) <= width
    gram = (there - mean) @ covariance @ (there - mean).T if wide else None

    def distance(kept: torch.Tensor) -> float:
        centre = there[kept].mean(0)
        centred = there[kept] - centre
        if gram is not None:
            own = gram[kept][:, kept]
            product = own - own.mean(0) - own.mean(1, keepdim=True) + own.mean()
        else:
            triangle = torch.linalg.qr(centred, mode="r").R
            product = triangle @ covariance @ triangle.T
        scale = len(kept) - 1
        roots = torch.linalg.eigvalsh((product + product.T) / (2 * scale)).clamp_min(0).sqrt()
        spread = covariance.trace() + centred.square().sum() / scale
        return max(0.0, ((mean - centre).square().sum() + spread - 2 * roots.sum()).item())

    return distance


def cubic_kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(a.b / width + 1)^3 of all pairs (Binkowski et al. 2018)."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def gaussian_kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """exp(-|a - b|^2 / 200) of all pairs of features scaled to length 1 (CMMD: Jayasumana et al. 2024)."""
    a, b = (torch.nn.functional.normalize(each, dim=1) for each in (a, b))
    return torch.exp(-torch.cdist(a, b).square() / 200)


def kernel_distance_of(real: torch.Tensor, fake: torch.Tensor, kernel: Kernel = cubic_kernel) -> Figure:
    """The unbiased squared MMD (Gretton et al. 2012) of real (count, width) and the rows of `fake` whose numbers are given."""
    check_pair(real, fake)
    x, y = real.double(), fake.double()
    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(y, x)
    within_real = (xx.sum() - xx.trace()) / (len(x) * (len(x) - 1))
    own, between = yy.diagonal(), xy.mean(1)

    def distance(kept: torch.Tensor) -> float:
        within = (yy[kept][:, kept].sum() - own[kept].sum()) / (len(kept) * (len(kept) - 1))
        return (within_real + within - 2 * between[kept].mean()).item()

    return distance


def sliced_wasserstein_of(real: torch.Tensor, fake: torch.Tensor, projections: int = 256, seed: int = 0) -> Figure:
    """The mean squared 2-Wasserstein distance over directions drawn by `seed` (Bonneel et al. 2015), of real (count, width) and
    those rows of `fake` whose numbers are given, by the quantiles of the real ones.
    """
    check_pair(real, fake)
    directions = torch.randn(real.shape[1], projections, generator=generator_for(seed, 0), dtype=torch.float64)
    directions = torch.nn.functional.normalize(directions, dim=0)
    there, here = (real.double() @ directions).sort(dim=0).values, fake.double() @ directions

    def distance(kept: torch.Tensor) -> float:
        places = (torch.arange(len(kept), dtype=torch.float64) + 0.5) / len(kept) * len(there) - 0.5
        places = places.clamp(0, len(there) - 1)
        low = places.long()
        high = (low + 1).clamp(max=len(there) - 1)
        quantiles = torch.lerp(there[low], there[high], (places - low)[:, None])
        return (here[kept].sort(dim=0).values - quantiles).square().mean().item()

    return distance


def kernel_distance(real: torch.Tensor, fake: torch.Tensor) -> float:
    """The unbiased squared MMD of two feature sets (count, width): see kernel_distance_of."""
    return kernel_distance_of(real, fake)(torch.arange(len(fake)))


def kernel_distance_of_subsets(
    real: torch.Tensor, fake: torch.Tensor, subsets: int, subset_size: int, seed: int
) -> tuple[float, float]:
    """Mean and standard deviation of kernel_distance over subsets of both sets, drawn by `seed`, as KID is published."""
    check_pair(real, fake)
    size = min(subset_size, len(real), len(fake))
    values = []
    for subset in range(subsets):
        generator = generator_for(seed, subset)
        x = real[torch.randperm(len(real), generator=generator)[:size]]
        y = fake[torch.randperm(len(fake), generator=generator)[:size]]
        values.append(kernel_distance(x, y))
    return float(np.mean(values)), float(np.std(values))


def feature_mse(features: torch.Tensor, originals: torch.Tensor) -> torch.Tensor:
    """How far each sample's features (count, width) are from those of the teacher's sample from the same seed.

    The squared distance, where 1 is that of two of the teacher's samples on average (twice their variance).
    """
    check_pair(originals, features)
    there = originals.double()
    return (features.double() - there).square().sum(1) / (2 * there.var(0).sum()).clamp_min(torch.finfo(torch.float64).tiny)


def caption_retrieval(
    sample_features: torch.Tensor,
    sample_names: list[str],
    real_features: torch.Tensor,
    real_names: list[str],
    pool: int = 64,
    seed: int = 0,
) -> torch.Tensor:
    """Whether the nearest real image bears a sample's own name, among the images of `pool` names; boolean, (count,).

    The pool of a sample is its own name and pool - 1 others drawn by `seed`; nearest by cosine similarity of features
    (count, width) centred by the real set's mean. Chance is 1 / pool.
    """
    check_pair(real_features, sample_features)
    known = sorted(set(real_names))
    if not 1 < pool <= len(known):
        raise InputError(f"caption retrieval among {pool} names: the real images have {len(known)}.")
    unknown = next(iter(set(sample_names) - set(known)), None)
    if unknown is not None:
        raise InputError(f"caption retrieval: no real image bears the name {unknown!r}.")
    centre = real_features.mean(0)
    real = torch.nn.functional.normalize(real_features - centre, dim=1)
    samples = torch.nn.functional.normalize(sample_features - centre, dim=1)
    number = {name: index for index, name in enumerate(known)}
    labels = torch.tensor([number[name] for name in real_names])
    found = torch.zeros(len(sample_names), dtype=torch.bool)
    for index, (similarity, name) in enumerate(zip(samples @ real.T, sample_names, strict=True)):
        own = number[name]
        drawn = torch.randperm(len(known), generator=generator_for(seed, index)).tolist()
        chosen = torch.zeros(len(known), dtype=torch.bool)
        chosen[[own, *[other for other in drawn if other != own][: pool - 1]]] = True
        nearest = similarity.masked_fill(~chosen[labels], -2.0).argmax()
        found[index] = labels[nearest] == own
    return found
