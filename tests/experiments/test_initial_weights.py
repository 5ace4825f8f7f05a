"""The first weights keep the power of the trunk all the way up; skip dropout acts in training steps alone."""

import math

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel

from experiments.initial_weights import rescale_initial_weights
from experiments.skip_dropout import SkipDropout

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


def run(unet):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(3, unet.config.in_channels, 8, 8, generator=generator), torch.tensor([5, 500, 900])
    tokens = {"encoder_hidden_states": torch.zeros(3, 2, 8)} if isinstance(unet, UNet2DConditionModel) else {}
    with torch.no_grad():
        return unet(*inputs, **tokens).sample


@pytest.mark.parametrize("make", [unconditional, conditional])
def test_a_row_without_skips_changes_alone_and_only_in_a_training_step(make):
    unet = make()
    intact = run(unet)
    dropout = SkipDropout(unet, start=1.0, steps=10, seed=0)
    dropout.on_train_start()
    assert torch.equal(run(unet), intact)
    dropout.kept = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    changed = [not torch.equal(*rows) for rows in zip(run(unet), intact, strict=True)]
    assert changed == [False, True, True]
    dropout.on_train_batch_end()
    assert torch.equal(run(unet), intact)
    dropout.on_train_end()
    assert not any(block._forward_pre_hooks for block in unet.up_blocks)


def test_the_draw_drops_from_a_level_outwards_in_the_asked_share():
    dropout = SkipDropout(unconditional(), start=0.5, steps=14, seed=0)
    assert dropout.draw(50, step=14).all()
    kept = dropout.draw(4000, step=7)  # halfway: a quarter of the rows
    assert torch.equal(kept, dropout.draw(4000, step=7)) and not torch.equal(kept, dropout.draw(4000, step=8))
    assert (kept[0] >= kept[1]).all()  # the outer up block is dropped first
    assert abs((kept[1] == 0).float().mean().item() - 0.25) < 0.03
    assert abs((kept[0] == 0).float().mean().item() - 0.125) < 0.03
