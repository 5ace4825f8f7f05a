"""The inventory, on the tiny teacher and on SD-v1.4's full-size U-Net on the meta device."""

from collections import Counter

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel

from common.models.loading import load_denoiser
from common.pruning.plan import Plan, apply_plan, edited
from ld_pruner import list_operators
from ld_pruner.initial_weights import CHOICES, initial_weights
from tests.test_conf import compose_config

# the last linear maps of what a module adds to its input, or its caller does: without them nothing is added
LAST = {
    "attention": ("to_out.0",),
    "feed_forward": ("net.2",),
    "resnet": ("conv2",),
    "transformer_block": ("attn1.to_out.0", "attn2.to_out.0", "ff.net.2"),
    "transformer": ("proj_out",),
}


@pytest.fixture(scope="module")
def stable_diffusion():
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280)
        )


def test_stable_diffusion_counts(stable_diffusion):
    operators = list_operators(
        stable_diffusion, compose_config("config", "method=ld_pruner", "method.kinds=paper").method.kinds
    )
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
    assert len(operators) == 322
    assert len(list_operators(stable_diffusion, compose_config("config", "method=ld_pruner").method.kinds)) == 108
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


def unconditional(**settings):
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    shared = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    return UNet2DModel(attention_head_dim=4, **shared | blocks | settings)


def conditional(cross="CrossAttn", **settings):
    blocks = {"down_block_types": (f"{cross}DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", f"{cross}UpBlock2D")}
    shared = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    return UNet2DConditionModel(attention_head_dim=4, cross_attention_dim=12, **shared | blocks | settings)


@pytest.mark.parametrize(
    "build",
    [
        unconditional,
        lambda: unconditional(mid_block_scale_factor=2.0),  # diffusers divides the sum in ResNet blocks and attention
        conditional,
        lambda: conditional(mid_block_scale_factor=2.0, resnet_out_scale_factor=1.5),
        lambda: conditional("SimpleCrossAttn", mid_block_type="UNetMidBlock2DSimpleCrossAttn"),  # DeepFloyd IF's
    ],
    ids=["unconditional", "unconditional_scaled", "conditional", "conditional_scaled", "added_kv"],
)
@torch.no_grad()
def test_without_an_operator_the_network_is_as_if_its_last_weights_were_zero(build):
    """diffusers' own forward pass tells where the residual is added and what is divided by what."""
    torch.manual_seed(0)
    unet = build().eval()
    text = {} if isinstance(unet, UNet2DModel) else {"encoder_hidden_states": torch.randn(2, 7, 12)}
    noisy = torch.randn(2, unet.config.in_channels, 8, 8)
    seen = Counter()
    for operator in list_operators(unet, tuple(LAST), residual="zero"):
        if operator.edit.operation == "conv1x1":
            continue
        module = unet.get_submodule(operator.site)
        last = [weight for path in LAST[operator.kind] for weight in module.get_submodule(path).parameters()]
        before = [weight.clone() for weight in last]
        for weight in last:
            weight.zero_()
        expected = unet(noisy, 300, **text).sample
        for weight, value in zip(last, before, strict=True):
            weight.copy_(value)
        with edited(unet, [operator.edit], {}):
            assert torch.allclose(unet(noisy, 300, **text).sample, expected, rtol=1e-5, atol=1e-6), operator
        assert operator.parameters_saved == sum(weight.numel() for weight in module.parameters())
        seen[operator.kind] += 1
    assert seen["attention"] >= 3 and seen["resnet"] >= 3


def test_a_student_without_attention_trains_all_that_is_left(tiny_uig_teacher_folder):
    unet = load_denoiser(tiny_uig_teacher_folder)
    operators = list_operators(unet, "attention", residual="zero")
    assert len(operators) == 16 and {operator.edit.operation for operator in operators} == {"identity"}
    for chosen in (operators, operators[-1:], operators[8:9]):
        student = apply_plan(unet, Plan("test", tuple(operator.edit for operator in chosen))).requires_grad_(True)
        student(torch.randn(2, 3, 16, 16), 500).sample.square().mean().backward()
        assert [name for name, weight in student.named_parameters() if weight.grad is None] == []


def test_kinds_exclude_and_residual(tiny_teacher):
    unet = tiny_teacher.denoiser
    only = list_operators(unet, kinds=("attention",), exclude=("down_blocks.*",), residual="zero")
    assert {operator.kind for operator in only} == {"attention"}
    assert {operator.edit.operation for operator in only} == {"zero"}
    assert len(only) == 2 * (1 + 2)
    with pytest.raises(ValueError, match="'up_block.\\*' matches no operator"):
        list_operators(unet, exclude=("up_block.*",))
    assert list_operators(unet, "attention", ("down_blocks.*",), "zero") == only
    for kinds in (("convolution",), "convolution", ("paper", "conv")):
        with pytest.raises(ValueError, match="the kinds are conv, attention.*'paper' for all"):
            list_operators(unet, kinds)
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
    from common.pruning.plan import load_replacement

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
