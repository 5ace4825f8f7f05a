"""L1-Diff's formulas, as the README of "Towards Tiny Diffusion" has them: importance, threshold, penalty, regrowth.

    importance   I(w) = alpha |w| + beta |dL/dw|
    pruning      w is pruned where I(w) < T
    training     min L(theta') + lambda ||theta'||_1 over the weights that stay
    regrowth     a small random share of the pruned weights comes back

The README gives no alpha, beta, lambda, T, nor probability of regrowth. The authors' code has the first formula alone, with
beta = 0 (l1_diff.masks.reference_masks).
"""

from collections.abc import Iterable, Mapping

import torch

from common.errors import InputError


def check_coefficients(alpha: float, beta: float) -> None:
    """InputError when alpha or beta is negative, or both are 0."""
    if alpha < 0 or beta < 0 or alpha == beta == 0:
        raise InputError(f"method.alpha={alpha}, method.beta={beta}: both must be at least 0, and one of them above.")


def importance(weight: torch.Tensor, gradient: torch.Tensor | None, alpha: float, beta: float) -> torch.Tensor:
    """alpha |w| + beta |dL/dw|, elementwise, float32 like `weight`; `gradient` may be None when beta is 0.

    InputError when alpha or beta is negative, when both are 0, and for a gradient that is missing or of another shape.
    """
    check_coefficients(alpha, beta)
    total = alpha * weight.detach().float().abs()
    if beta:
        if gradient is None or gradient.shape != weight.shape:
            given = None if gradient is None else tuple(gradient.shape)
            raise InputError(f"importance: the gradient's shape is {given}, the weight's {tuple(weight.shape)}.")
        total += beta * gradient.detach().float().abs()
    return total


def importances(
    weights: Mapping[str, torch.Tensor], gradients: Mapping[str, torch.Tensor], alpha: float, beta: float, balance: bool
) -> dict[str, torch.Tensor]:
    """The importance of every weight by site; `gradients` are read when beta is above 0.

    balance: alpha and beta are given in units of the network, alpha / mean |w| and beta / mean |dL/dw| over all of `weights`:
    still two constants of the formula, of which the README gives none, and so without a change of the ranking over layers.
    """
    check_coefficients(alpha, beta)
    if balance:
        alpha, beta = alpha / mean_size(weights.values()), beta and beta / mean_size(gradients[site] for site in weights)
    return {site: importance(weight, gradients.get(site), alpha, beta) for site, weight in weights.items()}


def mean_size(tensors: Iterable[torch.Tensor]) -> float:
    """The mean absolute value over all elements; a tiny number where all are zero."""
    total, count = 0.0, 0
    for tensor in tensors:
        total, count = total + tensor.detach().float().abs().sum().item(), count + tensor.numel()
    return max(total / max(1, count), torch.finfo(torch.float32).tiny)


def stays(importances: torch.Tensor, threshold: float) -> torch.Tensor:
    """The mask of the weights that stay: where the importance is not below T."""
    return importances >= threshold


def penalty_gradient(weight: torch.Tensor) -> torch.Tensor:
    """A subgradient of ||w||_1, to be added to the loss's gradient times lambda."""
    return weight.sign()


def soft_threshold(weight: torch.Tensor, amount: float) -> torch.Tensor:
    """The proximal step of the penalty, sign(w) max(|w| - amount, 0), with amount = learning rate x lambda.

    Unlike the subgradient it reaches zero (Parikh and Boyd, Proximal Algorithms, section 6.5.2).
    """
    return weight.sign() * (weight.abs() - amount).clamp_min(0)


def regrown(mask: torch.Tensor, probability: float, generator: torch.Generator) -> torch.Tensor:
    """True where a pruned weight (False in `mask`) comes back, each with `probability`; drawn on the CPU."""
    drawn = torch.rand(mask.shape, generator=generator) < probability
    return drawn.to(mask.device) & ~mask
