"""The inventory, on the tiny teacher and on SD-v1.4's full-size U-Net on the meta device."""

from collections import Counter

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel

from ld_pruner import list_operators
from ld_pruner.initial_weights import CHOICES, initial_weights

PAIRED = [("norm", "norm"), ("attention", "attention")]


@pytest.fixture(scope="module")
def stable_diffusion():
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280)
        )


def test_stable_diffusion_counts(stable_diffusion):
    operators = list_operators(stable_diffusion)
    counts = Counter(operator.kind for operator in operators)
    # 22 ResNets, 16 transformers, 32 attentions, 3 + 3 samplers; 61 GroupNorms + 48 LayerNorms; of 98 convolutions
    # conv_in, conv_out and the 14 shortcuts (1x1 already) are left out
    assert counts == {
        "resnet": 22,
        "transformer": 16,
        "transformer_block": 16,
        "attention": 32,
        "feed_forward": 16,
        "downsampler": 3,
        "upsampler": 3,
        "norm": 109,
        "conv": 82,
        "activation": 23,
    }
    replaced = Counter((operator.kind, operator.edit.operation) for operator in operators)
    assert replaced["resnet", "conv1x1"] == 14 and replaced["resnet", "identity"] == 8
    assert replaced["downsampler", "avg_pool"] == 3 and replaced["upsampler", "upsample"] == 3
    transformers = sum(o.parameters_saved for o in operators if o.kind == "transformer")
    assert round(transformers / 1e6, 2) == 267.24  # papers: 31.1 % of the U-Net


def test_never_the_ends_nor_the_time_embedding(stable_diffusion):
    first = {operator.site.split(".")[0] for operator in list_operators(stable_diffusion)}
    assert first == {"down_blocks", "mid_block", "up_blocks", "conv_norm_out", "conv_act"}


def test_unconditional_unet_has_operators():
    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(32, 64),
        norm_num_groups=8,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    assert {"resnet", "attention", "downsampler", "upsampler"} <= {operator.kind for operator in list_operators(unet)}


def test_kinds_exclude_and_residual(tiny_teacher):
    unet = tiny_teacher.denoiser
    only = list_operators(unet, kinds=("attention",), exclude=("down_blocks.*",), residual="zero")
    assert {operator.kind for operator in only} == {"attention"}
    assert {operator.edit.operation for operator in only} == {"zero"}
    assert len(only) == 2 * (1 + 9)
    with pytest.raises(ValueError, match="'up_block.\\*' matches no operator"):
        list_operators(unet, exclude=("up_block.*",))
    with pytest.raises(ValueError, match="the kinds are conv, attention"):
        list_operators(unet, kinds=("convolution",))
    with pytest.raises(ValueError, match="residual"):
        list_operators(unet, residual="half")


@pytest.mark.parametrize("choice", CHOICES)
def test_initial_weights_have_the_edits_shapes(tiny_teacher, choice):
    unet = tiny_teacher.denoiser
    operators = list_operators(unet)
    batch = ((torch.randn(3, 4, 8, 8), torch.tensor([1, 400, 900])), {"encoder_hidden_states": torch.randn(3, 12, 16)})
    tensors = initial_weights(unet, operators, choice, lambda: batch, seed=0)
    replaced = [operator for operator in operators if operator.edit.operation == "conv1x1"]
    assert len(tensors) == 2 * len(replaced) > 0
    for operator in replaced:
        sizes = operator.edit.sizes
        assert tensors[f"{operator.site}.weight"].shape == (sizes["out"], sizes["in"], 1, 1)


def test_least_squares_fits_better_than_any_other_choice(tiny_teacher):
    from common.plans import load_replacement

    unet = tiny_teacher.denoiser
    operators = [o for o in list_operators(unet, ("conv",)) if o.edit.operation == "conv1x1"]
    batch = ((torch.randn(8, 4, 8, 8), torch.arange(8) * 100), {"encoder_hidden_states": torch.randn(8, 12, 16)})
    operator = operators[0]
    seen = {}
    handle = unet.get_submodule(operator.site).register_forward_hook(lambda _, i, o: seen.update(source=i[0], result=o))
    with torch.no_grad():
        unet(*batch[0], **batch[1])
    handle.remove()
    errors = {}
    for choice in CHOICES:
        tensors = initial_weights(unet, [operator], choice, lambda: batch, seed=0)
        replacement = load_replacement(unet.get_submodule(operator.site), operator.edit, tensors)
        errors[choice] = (replacement(seen["source"]) - seen["result"]).pow(2).mean().item()
    assert min(errors, key=errors.get) == "least_squares", errors
