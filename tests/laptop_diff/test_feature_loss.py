"""Normalised feature losses: no term dominates, scales do not matter, a resumed run keeps its running norms."""

import pytest
import torch
from torch.nn import functional as F

from common.errors import InputError
from common.training.features import squared_feature_losses
from laptop_diff import normalized_feature_loss
from laptop_diff.feature_loss import VARIANTS, NormalizedFeatureLosses, unit_feature_losses


@pytest.fixture
def features():
    torch.manual_seed(0)
    shapes, scales = [(3, 4, 8, 8), (3, 8, 4, 4), (3, 16, 2, 2)], [1.0, 30.0, 1000.0]
    teacher = [scale * torch.randn(shape) for shape, scale in zip(shapes, scales, strict=True)]
    student = [(t + 0.1 * scale * torch.randn_like(t)).requires_grad_() for t, scale in zip(teacher, scales, strict=True)]
    return student, teacher


@pytest.mark.parametrize("variant", ["inv_l2_sq", "rel_to_max", "rel_to_mean"])
def test_equal_relative_errors_give_equal_terms(features, variant):
    terms = NormalizedFeatureLosses(variant)(*features)
    assert max(terms) / min(terms) < 1.5
    plain = squared_feature_losses(*features)
    assert max(plain) / min(plain) > 1e5


def test_inverse_norm_leaves_a_linear_dependence_on_scale(features):
    student, teacher = features
    one = normalized_feature_loss(student[:1], teacher[:1], "inv_l2")
    ten = normalized_feature_loss([10 * student[0]], [10 * teacher[0]], "inv_l2")
    assert (ten / one).item() == pytest.approx(10, rel=1e-4)
    assert normalized_feature_loss([10 * student[0]], [10 * teacher[0]], "inv_l2_sq").item() == pytest.approx(
        normalized_feature_loss(student[:1], teacher[:1], "inv_l2_sq").item(), rel=1e-4
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_is_the_sum_of_terms_and_its_gradient_goes_to_the_student(features, variant):
    student, teacher = features
    teacher = [t.clone().requires_grad_() for t in teacher]
    loss = normalized_feature_loss(student, teacher, variant)
    assert loss.item() == pytest.approx(sum(NormalizedFeatureLosses(variant)(student, teacher)).item(), rel=1e-6)
    loss.backward()
    assert all(s.grad is not None and s.grad.abs().sum() > 0 for s in student)
    assert all(t.grad is None for t in teacher)


def test_relative_squared_error_by_hand():
    student, teacher = [torch.tensor([[1.0, 3.0]])], [torch.tensor([[2.0, 4.0]])]
    assert normalized_feature_loss(student, teacher, "inv_l2_sq").item() == pytest.approx((1 + 1) / (4 + 16))
    assert normalized_feature_loss(student, teacher, "inv_l2").item() == pytest.approx(1 / 20**0.5)
    assert normalized_feature_loss(student, teacher, "rel_to_max").item() == pytest.approx(1.0)


def test_running_norms_survive_a_checkpoint(features):
    student, teacher = features
    first = NormalizedFeatureLosses("inv_l2_sq", momentum=0.9)
    first(student, teacher)
    second = NormalizedFeatureLosses("inv_l2_sq", momentum=0.9)
    second.load_state_dict(first.state_dict())
    other = [3 * t for t in teacher]
    assert [t.item() for t in first(student, other)] == [t.item() for t in second(student, other)]
    fresh = NormalizedFeatureLosses("inv_l2_sq", momentum=0.9)
    assert [t.item() for t in fresh(student, other)] != [t.item() for t in first(student, other)]


def test_unknown_variant_is_told(features):
    with pytest.raises(InputError, match="none of inv_l2, inv_l2_sq, rel_to_max, rel_to_mean"):
        normalized_feature_loss(*features, variant="norm")


@pytest.mark.parametrize("shape", [(2, 6, 3, 4), (2, 5, 6)])
def test_directions_alone_are_compared(shape):
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(shape, generator=generator) for _ in range(2))
    ours.requires_grad_(True)
    (loss,) = unit_feature_losses([ours], [theirs])
    channels = 1 if len(shape) == 4 else -1
    apart = F.normalize(ours, dim=channels) - F.normalize(theirs, dim=channels)
    assert loss.item() == pytest.approx(apart.square().sum(channels).mean().item(), rel=1e-5)
    (scaled,) = unit_feature_losses([7 * ours], [0.1 * theirs])
    assert scaled.item() == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    assert ours.grad.abs().sum() > 0
    assert unit_feature_losses([torch.zeros(shape)], [theirs])[0].isfinite()
