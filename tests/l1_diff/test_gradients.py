"""The importance by hand and by autograd, and where its gradients come from."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common.errors import InputError
from common.scoring.noisy_batches import noisy_batches
from l1_diff import importance
from l1_diff.algorithm import importances, penalty_gradient, regrown, soft_threshold, stays
from l1_diff.gradients import average_gradients, denoising_losses, reconstruction_losses
from l1_diff.masks import prunable_weights


def test_importance_by_hand():
    weight, gradient = torch.tensor([1.0, -2.0, 0.0]), torch.tensor([0.5, 0.25, -3.0])
    assert importance(weight, gradient, 2.0, 4.0).tolist() == [4.0, 5.0, 12.0]
    assert importance(weight, None, 1.0, 0.0).tolist() == [1.0, 2.0, 0.0]
    assert importance(weight, gradient, 0.0, 1.0).tolist() == [0.5, 0.25, 3.0]


def test_importance_by_autograd():
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[3.0, -1.0]])
    inputs, targets = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[0.0], [1.0]])
    # errors 1 and -2: dL/dw = mean of 2 e x = ((2*1*1 + 0) / 2, (2*1*2 + 2*(-2)*1) / 2)
    losses = [(0.5, lambda row=row: F.mse_loss(layer(inputs[row]), targets[row])) for row in (slice(0, 1), slice(1, 2))]
    gradient = average_gradients({"": layer.weight}, losses)[""]
    assert gradient.tolist() == [[1.0, 0.0]]
    assert average_gradients({"": layer.weight}, losses, "mean_absolute")[""].tolist() == [[1.0, 4.0]]
    assert importance(layer.weight, gradient, 1.0, 10.0).tolist() == [[13.0, 1.0]]
    assert layer.weight.grad is None


def test_balance_makes_the_terms_comparable():
    generator = torch.Generator().manual_seed(0)
    weight, gradient = torch.randn(50, 4, generator=generator), torch.randn(50, 4, generator=generator)
    weights, gradients = {"a": weight, "b": 3 * weight}, {"a": gradient, "b": gradient}
    balanced = importances(weights, gradients, 1.0, 1.0, balance=True)
    scaled = (
        {site: factor * value for site, value in values.items()} for factor, values in ((100, weights), (1e-6, gradients))
    )
    again = importances(*scaled, 1.0, 1.0, balance=True)
    assert all(torch.allclose(balanced[site], again[site], rtol=1e-4) for site in "ab")
    assert torch.cat([*balanced.values()]).mean().item() == pytest.approx(2.0, rel=1e-5)
    written = importances(weights, gradients, 1 / (2 * weight.abs().mean().item()), 1 / gradient.abs().mean().item(), False)
    assert all(torch.allclose(balanced[site], written[site], rtol=1e-4) for site in "ab")  # two constants of the formula
    zeros = {"a": torch.zeros(3)}
    assert importances(zeros, zeros, 1.0, 1.0, balance=True)["a"].tolist() == [0, 0, 0]


def test_gradients_of_the_task_loss_do_not_depend_on_the_batches(tiny_teacher, data_calibration):
    unet = tiny_teacher.denoiser
    weights = prunable_weights(unet)
    found = [average_gradients(weights, denoising_losses(unet, data_calibration, "even", size, 0)) for size in (6, 4)]
    (batch,) = noisy_batches(data_calibration, "even", 6, False, 0)
    weight = weights["mid_block.resnets.0.conv1"].requires_grad_(True)
    prediction = unet(batch.latents, batch.timesteps, **batch.conditions).sample
    (expected,) = torch.autograd.grad((prediction - batch.target).square().mean(), weight)
    weight.requires_grad_(False)
    for gradients in found:
        assert gradients.keys() == weights.keys()
        assert (
            torch.allclose(gradients["mid_block.resnets.0.conv1"], expected, rtol=1e-3, atol=1e-6) and expected.abs().max() > 0
        )
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in unet.parameters())


def test_gradients_of_the_reconstruction(tiny_teacher):
    autoencoder = tiny_teacher.autoencoder
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    gradients = average_gradients(prunable_weights(autoencoder), reconstruction_losses(autoencoder, images, 2))
    assert gradients["encoder.conv_in"].abs().max() > 0 and gradients["decoder.conv_out"].abs().max() > 0
    with pytest.raises(InputError, match="uint8"):
        next(reconstruction_losses(autoencoder, images.float(), 2))
    with pytest.raises(InputError, match="uint8"):
        next(reconstruction_losses(autoencoder, images[:0], 2))


@pytest.mark.parametrize(("alpha", "beta"), [(0, 0), (-1, 1), (1, -1)])
def test_bad_factors(alpha, beta):
    with pytest.raises(InputError, match=f"alpha={alpha}, method.beta={beta}"):
        importance(torch.ones(2), torch.ones(2), alpha, beta)


def test_bad_gradients(tiny_teacher, data_calibration):
    with pytest.raises(InputError, match="None"):
        importance(torch.ones(2), None, 1.0, 1.0)
    with pytest.raises(InputError, match=r"\(3,\).*\(2,\)"):
        importance(torch.ones(2), torch.ones(3), 1.0, 1.0)
    weight = nn.Parameter(torch.ones(2))
    with pytest.raises(InputError, match="gradient at here is not finite"):
        average_gradients({"here": weight}, [(1.0, lambda: (weight * torch.inf).sum())])
    assert not nn.Parameter(torch.ones(1), requires_grad=False).requires_grad and weight.requires_grad
    with pytest.raises(InputError, match="none of mean, mean_absolute"):
        average_gradients({"": weight}, [], "median")
    with pytest.raises(InputError, match="no training rows"):
        next(denoising_losses(tiny_teacher.denoiser, replace(data_calibration, data=None), "even", 4, 0))


def test_the_proximal_step_is_the_minimum_of_its_problem():
    """prox(w) = argmin_x ||x||_1 amount + 1/2 (x - w)^2, found on a grid."""
    weight, amount = torch.tensor([-0.73, -0.2, 0.0, 0.1, 0.26, 1.4]), 0.25
    grid = torch.linspace(-2, 2, 40001)
    objective = amount * grid.abs() + (grid - weight[:, None]).square() / 2
    assert torch.allclose(soft_threshold(weight, amount), grid[objective.argmin(1)], atol=2e-4)
    assert soft_threshold(weight, amount)[1:4].tolist() == [0, 0, 0]
    assert penalty_gradient(weight).tolist() == [-1, -1, 0, 1, 1, 1]


def test_a_share_of_the_pruned_weights_comes_back():
    mask = torch.arange(100_000) % 2 == 0
    grown = regrown(mask, 0.1, torch.Generator().manual_seed(0))
    assert not (grown & mask).any() and grown.sum().item() == pytest.approx(5000, rel=0.05)
    assert stays(torch.tensor([0.1, 0.2, 0.3]), 0.2).tolist() == [False, True, True]
