"""The first weights of both kinds of U-Net: all are scaled, and those that read skip connections once more."""

import math

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel

from experiments.teacher_training.initial_weights import rescale_initial_weights

SIZES = {"sample_size": 8, "block_out_channels": (8, 16), "norm_num_groups": 4, "attention_head_dim": 4, "layers_per_block": 1}


def unconditional():
    torch.manual_seed(0)
    types = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return UNet2DModel(**SIZES, **types).eval()


def conditional():
    torch.manual_seed(0)
    types = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return UNet2DConditionModel(**SIZES, **types, cross_attention_dim=8).eval()


@pytest.mark.parametrize("make", [unconditional, conditional])
def test_every_weight_is_scaled_and_the_columns_of_skips_more(make):
    plain, scaled = make(), make()
    rescale_initial_weights(scaled, gain=2.0, skips=0.5)
    before, after = plain.state_dict(), scaled.state_dict()
    first = "up_blocks.0.resnets.0."  # reads 16 channels of the trunk, then the skip
    for name, weight in before.items():
        if name.startswith("up_blocks") and name.endswith(("conv1.weight", "conv_shortcut.weight")):
            continue
        factor = 2.0 if name.endswith("weight") and weight.dim() > 1 and "embedding.weight" not in name else 1.0
        assert torch.equal(after[name], factor * weight), name
    assert torch.equal(after[f"{first}conv1.weight"][:, :16], 2 * before[f"{first}conv1.weight"][:, :16])
    assert torch.equal(after[f"{first}conv1.weight"][:, 16:], before[f"{first}conv1.weight"][:, 16:])
    trunk = 2 * math.sqrt(2 - 0.25) * before[f"{first}conv_shortcut.weight"][:, :16]
    torch.testing.assert_close(after[f"{first}conv_shortcut.weight"][:, :16], trunk)
