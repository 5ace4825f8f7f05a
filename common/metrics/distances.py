"""Distances between sets of features, and how often a sample is nearest to its own caption's images."""

import numpy as np
import torch

from common.errors import InputError
from common.runtime.seeding import generator_for


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
    """Fréchet distance of the Gaussian of `features` (count, width) to that of mean (width) and covariance (width, width).

    The trace of the root of the covariances' product is the sum of the roots of the eigenvalues of R C R^T / (count - 1), with
    R of the QR decomposition of the centred features: symmetric, and small where there are few features.
    """
    there = features.double()
    width = len(mean)
    if there.dim() != 2 or len(there) < 2 or there.shape[1] != width or covariance.shape != (width, width):
        given = f"features {tuple(there.shape)}, mean {tuple(mean.shape)}, covariance {tuple(covariance.shape)}"
        raise InputError(f"{given}: at least 2 features as wide as the statistics are needed.")
    centred = there - there.mean(0)
    triangle = torch.linalg.qr(centred, mode="r").R
    product = triangle @ covariance.double() @ triangle.T / (len(there) - 1)
    roots = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt()
    spread = covariance.double().trace() + centred.square().sum() / (len(there) - 1)
    return max(0.0, ((mean.double() - there.mean(0)).square().sum() + spread - 2 * roots.sum()).item())


def kernel_distance(
    real: torch.Tensor, fake: torch.Tensor, subsets: int = 50, subset_size: int = 100, seed: int = 0
) -> tuple[float, float]:
    """Mean and standard deviation over subsets of the unbiased squared MMD (Binkowski et al. 2018).

    The kernel is (x.y / width + 1)^3; the subsets are drawn by `seed`. real, fake: (count, width).
    """
    check_pair(real, fake)
    size = min(subset_size, len(real), len(fake))
    values = []
    for subset in range(subsets):
        generator = generator_for(seed, subset)
        x = real[torch.randperm(len(real), generator=generator)[:size]].double()
        y = fake[torch.randperm(len(fake), generator=generator)[:size]].double()
        xx, yy, xy = ((a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
        within = (xx.sum() - xx.trace() + yy.sum() - yy.trace()) / (size * (size - 1))
        values.append((within - 2 * xy.mean()).item())
    return float(np.mean(values)), float(np.std(values))


def caption_retrieval(
    sample_features: torch.Tensor,
    sample_names: list[str],
    real_features: torch.Tensor,
    real_names: list[str],
    pool: int = 64,
    seed: int = 0,
) -> float:
    """Share of samples whose nearest real image bears their own name, among the images of `pool` names.

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
    found = 0
    for index, (similarity, name) in enumerate(zip(samples @ real.T, sample_names, strict=True)):
        own = number[name]
        drawn = torch.randperm(len(known), generator=generator_for(seed, index)).tolist()
        chosen = torch.zeros(len(known), dtype=torch.bool)
        chosen[[own, *[other for other in drawn if other != own][: pool - 1]]] = True
        nearest = similarity.masked_fill(~chosen[labels], -2.0).argmax()
        found += labels[nearest].item() == own
    return found / len(sample_names)
