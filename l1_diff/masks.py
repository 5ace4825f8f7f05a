"""Which weights stay: masks from an importance, by a wanted share, a threshold, or a pattern of N in every M.

Masks are dictionaries from a site (a module path) to a bool tensor of its weight's shape, True where the weight is kept.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from typing import Literal, get_args

import torch
from torch import nn

from common.errors import InputError
from l1_diff.algorithm import stays

ModuleKind = Literal["conv", "linear"]
MODULES = {"conv": (nn.Conv1d, nn.Conv2d, nn.Conv3d), "linear": (nn.Linear,)}
Scope = Literal["global", "layer"]
SCOPES = get_args(Scope)
Masks = dict[str, torch.Tensor]


def prunable_weights(
    model: nn.Module, modules: Sequence[str] = ("conv", "linear"), exclude: Sequence[str] = (), setting: str = "exclude"
) -> dict[str, torch.Tensor]:
    """The weights of all convolutions and linear maps by site, without biases; works on the meta device.

    modules: of "conv", "linear"; exclude: shell patterns over module paths; setting: what errors call it.
    InputError for an unknown kind, for a pattern that matches no site, and when nothing is left.
    """
    unknown = [name for name in modules if name not in MODULES]
    if unknown:
        raise InputError(f"method.modules: {unknown[0]!r} is none of {', '.join(MODULES)}.")
    kinds = tuple(kind for name in modules for kind in MODULES[name])
    found = {site: module.weight for site, module in model.named_modules() if isinstance(module, kinds)}
    for pattern in exclude:
        if not any(fnmatch(site, pattern) for site in found):
            example = f"; paths look like {next(iter(found))!r}" if found else ""
            raise InputError(f"method.{setting}: {pattern!r} matches no weight of {type(model).__name__}{example}.")
    kept = {site: weight for site, weight in found.items() if not any(fnmatch(site, pattern) for pattern in exclude)}
    if not kept:
        raise InputError(f"method.modules={list(modules)}, method.{setting}={list(exclude)} leave no weight to prune.")
    return kept


def check_sparsity(amount: float, name: str = "sparsity") -> None:
    """InputError for a share outside [0, 1)."""
    if not 0 <= amount < 1:
        raise InputError(f"method.{name}={amount}: a share from 0 to below 1 is needed.")


def lowest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """True at the `count` lowest scores, exactly, whatever ties there are; bool of the shape of `scores`.

    The same operation as torch.nn.utils.prune.l1_unstructured's, so that ties fall alike.
    """
    flags = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    if count:
        flags[torch.topk(scores.reshape(-1), count, largest=False, sorted=False).indices] = True
    return flags.reshape(scores.shape)


def lowest_everywhere(scores: Mapping[str, torch.Tensor], count: int) -> Masks:
    """True at the `count` lowest scores of all sites together."""
    flags = lowest(torch.cat([score.reshape(-1) for score in scores.values()]), count)
    parts = flags.split([score.numel() for score in scores.values()])
    return {site: part.reshape(score.shape) for (site, score), part in zip(scores.items(), parts, strict=True)}


def sparsity_masks(scores: Mapping[str, torch.Tensor], amount: float, scope: str) -> Masks:
    """Prunes exactly round(amount * n) of the n weights with the lowest scores: of each layer, or of all ("global").

    InputError for an amount outside [0, 1) or an unknown scope.
    """
    check_sparsity(amount)
    if scope not in SCOPES:
        raise InputError(f"method.scope={scope!r} is none of {', '.join(SCOPES)}.")
    if scope == "layer":
        pruned = {site: lowest(score, round(amount * score.numel())) for site, score in scores.items()}
    else:
        pruned = lowest_everywhere(scores, round(amount * sum(score.numel() for score in scores.values())))
    return {site: ~flags for site, flags in pruned.items()}


def threshold_masks(scores: Mapping[str, torch.Tensor], threshold: float) -> Masks:
    """Prunes where the score is below `threshold` (the README's T); InputError when nothing at all would be left."""
    masks = {site: stays(score, threshold) for site, score in scores.items()}
    if not any(mask.any() for mask in masks.values()):
        highest = max(score.max().item() for score in scores.values())
        raise InputError(f"method.threshold={threshold}: every weight is below it; the highest score is {highest:.4g}.")
    return masks


def parse_pattern(pattern: str) -> tuple[int, int]:
    """(N, M) of "N:M": N of every M weights are kept. InputError unless 0 < N < M."""
    kept, _, group = str(pattern).partition(":")
    if not (kept.isdigit() and group.isdigit() and 0 < int(kept) < int(group)):
        raise InputError(f'method.pattern={pattern!r}: "N:M" with 0 < N < M is needed, such as "2:4".')
    return int(kept), int(group)


def check_groups(weights: Mapping[str, torch.Tensor], pattern: str, setting: str = "exclude") -> None:
    """InputError naming the sites whose flattened input is no multiple of the pattern's M."""
    group = parse_pattern(pattern)[1]
    unfit = [site for site, weight in weights.items() if weight[0].numel() % group]
    if unfit:
        raise InputError(
            f"method.pattern={pattern}: inputs of {', '.join(unfit)} are no multiple of {group}; put them in method.{setting}."
        )


def pattern_masks(scores: Mapping[str, torch.Tensor], pattern: str, setting: str = "exclude") -> Masks:
    """Keeps the N highest scores in each group of M neighbours ("2:4").

    Groups run along the input dimension: a score (out, in, ...) is flattened to (out, in * ...). InputError naming the sites
    whose flattened input is no multiple of M (check_groups).
    """
    check_groups(scores, pattern, setting)
    kept, group = parse_pattern(pattern)
    masks = {}
    for site, score in scores.items():
        groups = score.reshape(-1, group)
        flags = torch.zeros(groups.shape, dtype=torch.bool, device=score.device)
        masks[site] = flags.scatter_(1, groups.topk(kept, dim=1).indices, True).reshape(score.shape)
    return masks


def reference_masks(model: nn.Module, amount: float) -> Masks:
    """What the authors' code prunes: in each Conv2d the round(amount * n) weights of least magnitude, and nothing else.

    The same weights as torch.nn.utils.prune.l1_unstructured (commits 30c7f0e to 23cbabf of Diffusion-Pruning).
    InputError for an amount outside [0, 1).
    """
    weights = {site: module.weight for site, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    return sparsity_masks({site: weight.detach().abs() for site, weight in weights.items()}, amount, "layer")
