"""How far removing an operator moves the latents (LD-Pruner, arXiv 2404.11936, equations 1 to 7)."""

from typing import Literal, get_args

import torch

from common.errors import InputError

Formula = Literal["sum", "product", "mean_only", "std_only"]
FORMULAS = get_args(Formula)


def latent_score(
    original: torch.Tensor, modified: torch.Tensor, formula: str = "sum", squared: bool = False, correction: int = 0
) -> torch.Tensor:
    """One score per condition from latents of shape (conditions, samples, *latent), unmodified and modified.

    Mean and standard deviation are taken over the samples, element by element (3-6); avgdist (1) and stddist (2) are the
    Euclidean norms of their differences over the latent's elements; "sum" adds the two (7), the others are the paper's
    ablations. The paper does not say whether the norms are squared (`squared`), nor whether (5) and (6) divide by N
    (`correction` 0) or N - 1 (`correction` 1).
    Returns shape (conditions,). InputError for shapes that differ, an unknown formula, or too few samples.
    """
    if formula not in FORMULAS:
        raise InputError(f"formula={formula!r} is none of {', '.join(FORMULAS)}.")
    if original.shape != modified.shape or original.dim() < 3:
        raise InputError(
            f"latents of shapes {tuple(original.shape)} and {tuple(modified.shape)}: both must be equal and "
            "(conditions, samples, *latent)."
        )
    if original.shape[1] <= correction:
        raise InputError(f"{original.shape[1]} samples per condition are too few for correction={correction}.")

    def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        norm = torch.linalg.vector_norm((a - b).flatten(1), dim=1)
        return norm**2 if squared else norm

    original, modified = original.double(), modified.double()
    mean_distance = distance(original.mean(1), modified.mean(1))
    if formula == "mean_only":
        return mean_distance
    std_distance = distance(original.std(1, correction=correction), modified.std(1, correction=correction))
    if formula == "std_only":
        return std_distance
    return mean_distance * std_distance if formula == "product" else mean_distance + std_distance
