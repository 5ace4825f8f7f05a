"""BK-SDM's students: golden counts on the meta device, every weight from the right place in the teacher."""

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel

from baselines.bk_sdm import build_student
from baselines.bk_sdm_table import plan_for, removed_sites
from common.cost.macs import count_parameters
from common.errors import InputError
from common.pruning.plan import Plan


def stable_diffusion(version):
    second = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=64, **(second if version == 2 else {"cross_attention_dim": 768, "attention_head_dim": 8})
        )


@pytest.mark.parametrize(
    ("version", "variant", "count"),
    [
        (1, "base", 579_384_964),
        (1, "small", 482_346_884),
        (1, "tiny", 323_384_964),
        (2, "base", 583_480_964),
        (2, "small", 485_787_524),
        (2, "tiny", 326_825_604),
    ],
)
def test_parameter_counts(version, variant, count):
    student = build_student(stable_diffusion(version), variant)
    assert type(student) is UNet2DConditionModel
    assert count_parameters(student) == count


def marked(unet):
    """Every tensor filled with a number of its own, and the names by number."""
    names = {}
    with torch.no_grad():
        for number, (name, tensor) in enumerate(unet.state_dict().items()):
            tensor.fill_(number)
            names[number] = name
    return names


@pytest.mark.parametrize("variant", ["base", "small", "tiny"])
def test_every_key_comes_from_the_right_tensor(tiny_teacher, variant):
    teacher = tiny_teacher.denoiser
    names = marked(teacher)
    student = build_student(teacher, variant)
    shift = 1 if variant == "tiny" else 0
    for name, tensor in student.state_dict().items():
        source = names[int(tensor.flatten()[0])]
        expected = name
        if name.startswith("up_blocks."):
            parts = name.split(".")
            parts[1] = str(int(parts[1]) + shift)
            if parts[2] in ("resnets", "attentions") and parts[3] == "1":
                parts[3] = "2"
            expected = ".".join(parts)
        assert source == expected
        assert tensor.shape == teacher.state_dict()[source].shape
    assert student.state_dict()["conv_in.weight"].data_ptr() != teacher.state_dict()["conv_in.weight"].data_ptr()


@pytest.mark.parametrize("variant", ["base", "small", "tiny"])
def test_removed_sites_and_kept_parameters_make_the_whole(tiny_teacher, variant):
    teacher = tiny_teacher.denoiser
    gone = sum(count_parameters(teacher.get_submodule(site)) for site in removed_sites(teacher, variant))
    assert count_parameters(build_student(teacher, variant)) + gone == count_parameters(teacher)


@pytest.mark.parametrize("variant", ["base", "small", "tiny"])
def test_round_trip_by_stock_diffusers(tiny_teacher, tmp_path, variant):
    plan = Plan.from_json(plan_for(tiny_teacher.denoiser, variant).to_json())
    student = build_student(tiny_teacher.denoiser, variant).eval()
    assert plan == plan_for(tiny_teacher.denoiser, variant)
    student.save_pretrained(tmp_path)
    again = UNet2DConditionModel.from_pretrained(tmp_path, low_cpu_mem_usage=False).eval()
    torch.manual_seed(0)
    inputs = torch.randn(2, 4, 8, 8), torch.tensor([10, 700]), torch.randn(2, 12, 16)
    with torch.no_grad():
        torch.testing.assert_close(again(*inputs).sample, student(*inputs).sample, rtol=1e-4, atol=1e-5)


def test_a_topology_that_does_not_fit_is_told(tiny_teacher):
    with pytest.raises(InputError, match="none of base, small, tiny"):
        build_student(tiny_teacher.denoiser, "huge")
    with pytest.raises(InputError, match="not a Linear"):
        build_student(torch.nn.Linear(2, 2), "base")
    with torch.device("meta"):
        shallow = UNet2DConditionModel(
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(32, 64),
        )
    with pytest.raises(InputError, match="such a level 'down_blocks.3' is missing"):
        build_student(shallow, "tiny")
    headless = build_student(tiny_teacher.denoiser, "small")
    with pytest.raises(InputError, match="layers_per_block=1"):
        build_student(headless, "base")


@pytest.mark.parametrize("variant", ["base", "small", "tiny"])
@torch.no_grad()
def test_unconditional_unets_follow_the_same_table(variant):
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16, 16, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=4,
    ).eval()
    student = build_student(unet, variant)
    assert type(student) is UNet2DModel and student(torch.randn(2, 3, 16, 16), 3).sample.shape == (2, 3, 16, 16)
    gone = removed_sites(unet, variant)
    removed = sum(p.numel() for site in gone for p in unet.get_submodule(site).parameters())
    assert sum(p.numel() for p in student.parameters()) == sum(p.numel() for p in unet.parameters()) - removed
    kept, skipped = unet.up_blocks[3].resnets[2], 1 if variant == "tiny" else 0
    assert torch.equal(student.up_blocks[3 - skipped].resnets[1].conv1.weight, kept.conv1.weight)
