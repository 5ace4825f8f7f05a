"""The published counts of zeros, on models of full size."""

import json
from pathlib import Path

import diffusers
import pytest
import torch
from torch import nn

from common.errors import InputError
from common.pruning.masks import apply_masks
from l1_diff import reference_masks, sparsity

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "golden_counts.json").read_text())
UNET, AUTOENCODER = "ldm-celebahq-256 UNet @64", "ldm-celebahq-256 VQModel @256"
# the authors' logs: zeros at 30 % and 50 % of each convolution
ZEROS = {UNET: {0.3: 68_674_501, 0.5: 114_457_504}, AUTOENCODER: {0.3: 15_945_456, 0.5: 26_575_752}}
PERCENT = {UNET: {0.3: 25.07, 0.5: 41.79}, AUTOENCODER: {0.3: 28.84, 0.5: 48.07}}
# their table says 42.88 for the second, which its own figures do not give: 141.04 M of 329.21 M are 42.84 %
COMBINED = {0.3: 25.70, 0.5: 42.84}


def build(name):
    with torch.device("meta"):
        return getattr(diffusers, GOLDEN[name]["class"])(**GOLDEN[name]["config"])


def named_weights(model):
    return sum(parameter.numel() for name, parameter in model.named_parameters() if "weight" in name)


def test_published_counts_by_rounding():
    models = {name: build(name) for name in (UNET, AUTOENCODER)}
    conv = {
        name: [module.weight.numel() for module in model.modules() if isinstance(module, nn.Conv2d)]
        for name, model in models.items()
    }
    unet = models[UNET]
    assert sum(parameter.numel() for parameter in unet.parameters()) == GOLDEN[UNET]["params"] == 274_056_163
    assert named_weights(unet) == 273_915_936 and sum(conv[UNET]) == 228_915_008
    assert sum(parameter.numel() for parameter in models[AUTOENCODER].parameters()) == GOLDEN[AUTOENCODER]["params"]
    for amount, combined in COMBINED.items():
        zeros = {name: sum(round(amount * count) for count in conv[name]) for name in models}
        assert zeros == {name: ZEROS[name][amount] for name in models}
        for name, model in models.items():
            assert round(100 * zeros[name] / named_weights(model), 2) == PERCENT[name][amount]
        assert round(100 * sum(zeros.values()) / sum(map(named_weights, models.values())), 2) == combined


@pytest.mark.parametrize("name", [UNET, AUTOENCODER])
@pytest.mark.exhaustive
def test_published_counts_of_pruned_weights(name):
    model = build(name).to_empty(device="cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(0.5, 1.5)  # no zeros but those of the masks
    for amount, zeros in ZEROS[name].items():  # the second masks hold the first: the same weights are the smallest
        found = sparsity(apply_masks(model, reference_masks(model, amount)), ["conv"])
        assert (found.parameters, found.zeros, found.prunable_zeros) == (GOLDEN[name]["params"], zeros, zeros)
        assert round(100 * found.actual, 2) == PERCENT[name][amount]
        assert found.nominal == pytest.approx(amount, abs=1e-6)


def test_counts_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.GroupNorm(1, 2), nn.Linear(2, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1)
        model[0].weight[0] = 0  # 4 of 8
        model[1].weight[0] = 0  # of a norm: a "weight" that is not prunable
        model[2].bias[0] = 0  # no "weight"
        model[2].weight[0] = -0.0  # 2 of 6
    found = sparsity(model)
    assert (found.parameters, found.weights, found.zeros) == (8 + 2 + 4 + 6 + 3, 16, 7)
    assert (found.prunable, found.prunable_zeros) == (14, 6)
    assert found.actual == 7 / 16 and found.nominal == 6 / 14
    assert [(layer.site, layer.sparsity) for layer in found.layers] == [("0", 0.5), ("2", pytest.approx(1 / 3))]
    assert sparsity(model, ["linear"]).prunable == 6


def test_the_meta_device_has_no_zeros():
    with pytest.raises(InputError, match="meta device"):
        sparsity(nn.Linear(2, 2, device="meta"))
