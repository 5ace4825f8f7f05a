"""LD-Pruner's equations (1) to (7) and its Algorithm 1, one operator at a time, as plainly as the paper has them.

Castells, Song, Kim, Choi: LD-Pruner (arXiv 2404.11936), sections 2.2 to 2.4. `latent_score` is what the method uses.
`operator_scores` is the reference that ld_pruner/scoring.py is tested and timed against: that one puts several operators into
one forward pass and leaves out most of the work, and finds the same k operators.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, get_args

import torch
from torch import nn

from common.diffusion.sampling import denoise
from common.errors import InputError
from common.pruning.plan import edited
from common.scoring.calibration import Calibration
from ld_pruner.operators import Operator

Formula = Literal["sum", "product", "mean_only", "std_only"]
FORMULAS = get_args(Formula)


def latent_score(
    original: torch.Tensor, modified: torch.Tensor, formula: str = "sum", squared: bool = False, correction: int = 0
) -> torch.Tensor:
    """How far modifying an operator moves the latents, one score per condition, shape (conditions,).

    original, modified: final latents (conditions, samples, *latent) of the network as it is and with the operator modified.
    formula: "sum" is equation (7); the others are the paper's ablations. The paper does not say whether the norms are squared
    (`squared`), nor whether (5) and (6) divide by N (`correction` 0) or N - 1 (`correction` 1).
    InputError for shapes that differ, an unknown formula, or too few samples.
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

    def norm(difference: torch.Tensor) -> torch.Tensor:
        length = torch.linalg.vector_norm(difference.flatten(1), dim=1)
        return length**2 if squared else length

    original, modified = original.double(), modified.double()
    avg_orig, avg_mod = original.mean(1), modified.mean(1)  # (3), (4)
    std_orig, std_mod = (latents.std(1, correction=correction) for latents in (original, modified))  # (5), (6)
    avgdist = norm(avg_orig - avg_mod)  # (1)
    stddist = norm(std_orig - std_mod)  # (2)
    return {
        "sum": avgdist + stddist,  # (7)
        "product": avgdist * stddist,
        "mean_only": avgdist,
        "std_only": stddist,
    }[formula]


@torch.no_grad()
def final_latents(unet: nn.Module, calibration: Calibration, conditions: slice) -> torch.Tensor:
    """Latents (conditions, samples, *latent) of the chosen conditions after all denoising steps."""
    noise, embeddings = calibration.rows(conditions)
    latents = denoise(
        unet,
        calibration.scheduler,
        noise,
        embeddings,
        calibration.null_condition,
        calibration.steps,
        calibration.guidance_scale,
    )
    return latents.unflatten(0, (-1, calibration.shape[1]))


def operator_scores(
    unet: nn.Module,
    calibration: Calibration,
    operators: Iterable[Operator],
    tensors: Mapping[str, torch.Tensor],
    together: int = 1,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, float]:
    """Algorithm 1: the score of every operator by its site, summed over the conditions.

    tensors: weights of the 1x1 convolutions that take an operator's place (ld_pruner.initial_weights). together: conditions in
    one forward pass. advance: is told of each operator that is finished.
    """
    groups = [slice(first, first + together) for first in range(0, calibration.shape[0], together)]
    original = [final_latents(unet, calibration, conditions) for conditions in groups]
    scores = {}
    for operator in operators:
        with edited(unet, [operator.edit], dict(tensors)):  # modify it, and restore it afterwards
            modified = [final_latents(unet, calibration, conditions) for conditions in groups]
        parts = [latent_score(before, after) for before, after in zip(original, modified, strict=True)]
        scores[operator.site] = sum(part.sum().item() for part in parts)
        advance(1)
    return scores


def lowest_operators(scores: Mapping[str, float], k: int) -> list[str]:
    """The sites of the k operators to modify, those of the lowest scores."""
    return sorted(scores, key=scores.__getitem__)[:k]
