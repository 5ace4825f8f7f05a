"""Feature losses of which none dominates the others (LAPTOP-Diff, arXiv 2404.11098, normalised feature distillation).

The terms of plain feature distillation differ by orders of magnitude; the paper scales each by the norm of the teacher's
feature. The exact factor is not known, so the candidates are named options. With f_T the teacher's feature and ||.||
the L2 norm of one sample's feature, averaged over the batch:

    inv_l2       1 / ||f_T||
    inv_l2_sq    1 / ||f_T||^2, made per element: the term becomes the relative squared error
    rel_to_max   (max_j m_j) / m_i, with m_i the mean square of the i-th teacher feature
    rel_to_mean  (mean_j m_j) / m_i

unit_feature_losses is what two of its authors do in PPCL's code (arXiv 2511.16156): both features are normalised, each by its
own norm at each place, so that only directions are compared.
"""

from typing import Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from common.errors import InputError
from common.runtime.collectives import mean_over_processes
from common.settings import Decay
from common.training.features import Features, squared_feature_losses

Variant = Literal["inv_l2", "inv_l2_sq", "rel_to_max", "rel_to_mean"]
VARIANTS = get_args(Variant)


def teacher_scales(teacher_features: Features) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean square, L2 norm per sample averaged over the batch) of each teacher feature, without gradient.

    The batch is that of all processes which train together: means over their equal parts are means over the whole.
    """
    with torch.no_grad():
        flat = [feature.detach().float().flatten(1) for feature in teacher_features]
        scales = torch.stack(
            [torch.stack([f.square().mean() for f in flat]), torch.stack([f.norm(dim=1).mean() for f in flat])]
        )
        return tuple(mean_over_processes(scales))


def feature_factors(mean_square: torch.Tensor, norm: torch.Tensor, variant: str) -> torch.Tensor:
    """The factor alpha_i of each term, from the teacher's scales (terms,)."""
    tiny = torch.finfo(torch.float32).tiny
    if variant == "inv_l2":
        return 1 / norm.clamp_min(tiny)
    if variant == "inv_l2_sq":
        return 1 / mean_square.clamp_min(tiny)
    if variant == "rel_to_max":
        return mean_square.max() / mean_square.clamp_min(tiny)
    if variant == "rel_to_mean":
        return mean_square.mean() / mean_square.clamp_min(tiny)
    raise InputError(f"feature loss variant {variant!r} is none of {', '.join(VARIANTS)}.")


def normalized_feature_loss(
    student_features: Features, teacher_features: Features, variant: Variant = "inv_l2_sq"
) -> torch.Tensor:
    """sum_i alpha_i * mean squared error of the i-th pair; a scalar, with gradient to the student's features alone.

    Features are (batch, ...) tensors, equal shapes within a pair.
    """
    return torch.stack(NormalizedFeatureLosses(variant)(student_features, teacher_features)).sum()


def unit_feature_losses(student: Features, teacher: Features) -> list[torch.Tensor]:
    """|| s / ||s|| - t / ||t|| ||^2 = 2 - 2 cos(s, t) per pair, over the channels at each place, averaged over the others.

    Channels are those of (batch, channels, height, width), or the width of (batch, tokens, width). In place of
    common.training.features.squared_feature_losses.
    """
    return [
        2 - 2 * F.cosine_similarity(s.float(), t.detach().float(), dim=1 if s.dim() == 4 else -1).mean()
        for s, t in zip(student, teacher, strict=True)
    ]


class NormalizedFeatureLosses(nn.Module):
    """The terms alpha_i * mean squared error as a list; a `feature_losses` of common.training.distillation.DenoiserTraining.

    momentum: None takes the scales of each batch by itself; a number such as 0.99 averages them over batches (running),
    kept in buffers so that a resumed run goes on with the same factors.
    """

    running: torch.Tensor

    def __init__(self, variant: Variant = "inv_l2_sq", momentum: Decay | None = None):
        super().__init__()
        if variant not in VARIANTS:
            raise InputError(f"feature loss variant {variant!r} is none of {', '.join(VARIANTS)}.")
        self.variant, self.momentum = variant, momentum
        self.register_buffer("running", torch.zeros(2, 0))

    def forward(self, student_features: Features, teacher_features: Features) -> list[torch.Tensor]:
        scales = torch.stack(teacher_scales(teacher_features))
        if self.momentum is not None:
            if self.running.shape == scales.shape:
                scales = torch.lerp(scales, self.running, self.momentum)
            self.running = scales
        factors = feature_factors(scales[0], scales[1], self.variant)
        errors = squared_feature_losses(student_features, [feature.detach() for feature in teacher_features])
        return [factor * error for factor, error in zip(factors, errors, strict=True)]

    def _load_from_state_dict(self, state: dict, prefix: str, *rest: object) -> None:
        saved = state.get(f"{prefix}running")
        if saved is not None and saved.shape != self.running.shape:
            self.running = torch.zeros_like(saved)
        super()._load_from_state_dict(state, prefix, *rest)
