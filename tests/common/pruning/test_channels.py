"""Channels go in whole groups: what is left fits together, equals torch-pruning's own network, and needs no torch-pruning."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import Attention
from torch import nn

from common.cost.macs import count_macs, count_parameters, probe_inputs
from common.errors import InputError
from common.models.loading import load_denoiser
from common.pruning.channels import prune_channels
from common.pruning.plan import Edit, Plan, apply_plan, edited
from common.pruning.pruned_denoiser import PrunedUNet2DModel

pytestmark = pytest.mark.slow

GOLDEN = json.loads((Path(__file__).resolve().parents[2] / "golden_counts.json").read_text())
LDM4 = GOLDEN["ldm-celebahq-256 UNet @64"]["config"]
SMALL = {
    "ldm4": (UNet2DModel, LDM4 | {"sample_size": 8, "block_out_channels": (32, 64, 96, 128), "norm_num_groups": 8}),
    "scale_shift": (
        UNet2DModel,
        {
            "sample_size": 8,
            "block_out_channels": (32, 64),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            "norm_num_groups": 8,
            "resnet_time_scale_shift": "scale_shift",
            "downsample_type": "resnet",
            "upsample_type": "resnet",
        },
    ),
    "sd": (UNet2DConditionModel, {"sample_size": 8, "block_out_channels": (16, 32, 48, 64), "norm_num_groups": 4}),
    "linear": (
        UNet2DConditionModel,
        {
            "sample_size": 8,
            "block_out_channels": (32, 64),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "norm_num_groups": 8,
            "use_linear_projection": True,
            "transformer_layers_per_block": 2,
        },
    ),
}


def make(kind):
    network, settings = SMALL[kind]
    if network is UNet2DConditionModel:
        settings = {"cross_attention_dim": 24, "attention_head_dim": 4, **settings}
    torch.manual_seed(0)
    return network(**settings).eval()


def weights_squared(group, site):
    from torch_pruning import importance

    return importance.GroupMagnitudeImportance(normalizer=None)(group)


def inputs(unet):
    (sample, _), conditions = probe_inputs(unet)
    generator = torch.Generator().manual_seed(1)
    draws = {name: torch.randn(2, *value.shape[1:], generator=generator) for name, value in conditions.items()}
    return torch.randn(2, *sample.shape[1:], generator=generator), torch.tensor([3, 700]), draws


@torch.no_grad()
def run(unet):
    sample, timesteps, conditions = inputs(unet)
    return unet(sample, timesteps, **conditions).sample


def prune(unet, ratio=0.3, exclude=(), rounding="up", round_to=1):
    pruned = copy.deepcopy(unet)
    found = prune_channels(pruned, ratio, weights_squared, exclude, rounding, round_to)
    return pruned, Plan("test", found.edits, scores=found.scores, tensors=found.kept)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.exhaustive
def test_the_student_is_torch_prunings_network(kind, tmp_path):
    unet = make(kind)
    before = run(unet)
    pruned, plan = prune(unet)
    expected = run(pruned)
    assert not torch.allclose(expected, before, atol=1e-2) and torch.equal(run(unet), before)
    student = apply_plan(unet, plan)
    assert torch.allclose(run(student), expected, atol=1e-5)
    ours, theirs = student.state_dict(), pruned.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    with edited(unet, list(plan.edits), plan.tensors):
        assert torch.allclose(run(unet), expected, atol=1e-5)
    assert torch.equal(run(unet), before)
    student.save_pretrained(tmp_path / "student")
    loaded = load_denoiser(tmp_path / "student")
    assert torch.equal(run(loaded), run(student))
    plan.save(tmp_path / "plan")
    assert torch.equal(run(apply_plan(unet, Plan.load(tmp_path / "plan"))), run(student))


def widths(unet):
    return {name: tuple(m.weight.shape[:2]) for name, m in unet.named_modules() if getattr(m, "weight", None) is not None}


@pytest.mark.parametrize("kind", SMALL)
def test_what_must_stay_stays_and_what_must_divide_divides(kind):
    unet = make(kind)
    pruned, _ = prune(unet)
    before, after = widths(unet), widths(pruned)
    assert after["conv_in"][1] == before["conv_in"][1] and after["conv_out"][0] == before["conv_out"][0]
    assert after["conv_in"][0] < before["conv_in"][0] and after["conv_out"][1] < before["conv_out"][1]
    for (name, old), new in zip(unet.named_modules(), pruned.modules(), strict=True):
        if isinstance(new, nn.GroupNorm):
            assert new.num_groups == old.num_groups and new.num_channels % new.num_groups == 0
            assert new.num_channels == len(new.weight) <= old.num_channels
        if isinstance(new, Attention):
            inner = new.to_q.out_features
            assert new.heads == old.heads and inner % new.heads == 0 and inner < old.to_q.out_features
            assert inner == new.to_k.out_features == new.to_v.out_features == new.to_out[0].in_features
            if name.endswith("attn2"):
                assert new.to_k.in_features == new.to_v.in_features == 24
        if name.endswith("ff.net.0.proj"):
            assert new.out_features == 2 * pruned.get_submodule(name.replace("0.proj", "2")).in_features < old.out_features


def test_the_same_places_go_in_every_head_and_both_halves_of_geglu():
    unet = make("sd")
    _, plan = prune(unet)
    attention = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
    heads = unet.get_submodule(attention).heads
    kept = plan.tensors[f"{attention}.to_q.out"].view(heads, -1)
    size = unet.get_submodule(attention).to_q.out_features // heads
    assert heads > 1 and all(torch.equal(row - head * size, kept[0]) for head, row in enumerate(kept))
    forward = "down_blocks.1.attentions.0.transformer_blocks.0.ff.net"
    first, second = plan.tensors[f"{forward}.0.proj.out"].chunk(2)
    half = unet.get_submodule(f"{forward}.2").in_features
    assert torch.equal(second - half, first) and torch.equal(first, plan.tensors[f"{forward}.2.in"])


def test_the_lowest_channels_go():
    unet = make("ldm4")
    site = "time_embedding.linear_1"  # its channels are tied to the next layer's inputs alone
    sizes = (unet.time_embedding.linear_1.weight.square().sum(1) + unet.time_embedding.linear_2.weight.square().sum(0)) / 2
    _, plan = prune(unet, 0.3)
    stay = sizes.argsort(descending=True)[: int(128 * 0.7)].sort().values
    assert torch.equal(plan.tensors[f"{site}.out"], stay) and torch.equal(plan.tensors["time_embedding.linear_2.in"], stay)
    gone = 1 - sizes[stay].sum() / sizes.sum()
    assert plan.scores[site] == pytest.approx(gone.item(), rel=1e-4)
    assert next(edit for edit in plan.edits if edit.site == site).sizes == {"in": 32, "out": len(stay)}


def test_the_ratio_is_reached_where_every_part_divides():
    unet = make("ldm4")  # norm groups of 4, 8, 12 and 16 channels, heads of 32
    pruned, plan = prune(unet, 0.25)
    before, after = widths(unet), widths(pruned)
    narrowed = [name for name in before if after[name][0] < before[name][0]]
    assert len(narrowed) > 100 and all(after[name][0] == 0.75 * before[name][0] for name in narrowed)
    share = count_parameters(pruned) / count_parameters(unet)
    assert share == pytest.approx(0.75**2, abs=0.01)
    student = apply_plan(unet, plan)
    arguments, conditions = probe_inputs(unet)
    macs = [count_macs(network, arguments, conditions).total for network in (unet, student)]
    assert macs[1] / macs[0] == pytest.approx(0.75**2, abs=0.03)
    assert count_parameters(student) == count_parameters(pruned)


@pytest.mark.parametrize("round_to", [8, 16])
def test_channels_are_left_in_multiples(round_to):
    unet = make("sd")  # norms of 4 groups, heads of 4 channels
    pruned, plan = prune(unet, 0.3, rounding="down", round_to=round_to)
    plain, before, after = widths(prune(unet, 0.3, rounding="down")[0]), widths(unet), widths(pruned)
    narrowed = [name for name in before if after[name][0] < before[name][0]]
    assert narrowed and all(after[name][0] % round_to == 0 for name in narrowed)
    assert all(plain[name][0] <= after[name][0] for name in before)  # rounded up: never less than without it
    assert any(plain[name][0] < after[name][0] == before[name][0] for name in before)  # of 16 channels none can go
    assert torch.allclose(run(apply_plan(unet, plan)), run(pruned), atol=1e-5)
    assert prune(unet, 0.3, round_to=1000)[1].edits == ()


def test_groups_of_an_excluded_module_stay_whole():
    unet = make("ldm4")
    pruned, _ = prune(unet, exclude=("down_blocks.1.*",))
    before, after = widths(unet), widths(pruned)
    inside = [name for name in before if name.startswith("down_blocks.1.")]
    assert inside and all(after[name][0] == before[name][0] for name in inside)
    assert after["mid_block.resnets.0.conv1"][0] < before["mid_block.resnets.0.conv1"][0]
    with pytest.raises(InputError, match=r"'nothing\.\*' matches no module"):
        prune(unet, exclude=("nothing.*",))


def test_impossible_ratios_and_broken_networks_are_told():
    for ratio in (0, 1, -0.1, 1.5):
        with pytest.raises(InputError, match="a share between 0 and 1"):
            prune(make("scale_shift"), ratio)
    pruned, plan = prune(make("scale_shift"), exclude=("*",))
    assert plan.edits == () and widths(pruned) == widths(make("scale_shift"))
    broken = make("scale_shift")
    broken.time_embedding.linear_1.weight.data[0] = float("nan")
    with pytest.raises(InputError, match=r"importance of time_embedding\.linear_1 is not a number"):
        prune(broken)


def test_a_plan_without_its_indices_is_told():
    unet = make("scale_shift")
    _, plan = prune(unet)
    bare = Plan.from_json(plan.to_json())
    with pytest.raises(InputError, match=r"brings no weights for .* load it with Plan\.load"):
        apply_plan(unet, bare)
    with pytest.raises(InputError, match="brings no weights for"), edited(unet, list(bare.edits), {}):
        pass
    with pytest.raises(ValueError, match="'resize' does not know a ResnetBlock2D"):
        apply_plan(unet, Plan("test", (Edit("mid_block.resnets.0", "resize", {"in": 4, "out": 4}),)))


@pytest.mark.exhaustive
def test_loads_with_neither_this_project_nor_torch_pruning(tmp_path):
    unet = make("sd")
    student = apply_plan(unet, prune(unet)[1])
    student.save_pretrained(tmp_path / "unet")
    sample, timesteps, conditions = inputs(unet)
    torch.save({"sample": sample, "timestep": timesteps, **conditions}, tmp_path / "in.pt")
    script = f"""
import sys, torch

sys.modules["torchvision"] = None  # as where it is not installed: PyPI's cannot be imported beside a PyTorch for CPUs

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("common", "baselines", "torch_pruning"):
            raise ImportError(name)

sys.meta_path.insert(0, Absent())
from diffusers import AutoModel
unet = AutoModel.from_pretrained({str(tmp_path / "unet")!r}, trust_remote_code=True).eval()
with torch.no_grad():
    out = unet(**torch.load({str(tmp_path / "in.pt")!r})).sample
torch.save(out, {str(tmp_path / "out.pt")!r})
"""
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert torch.allclose(torch.load(tmp_path / "out.pt"), run(student), atol=1e-5)


@pytest.mark.exhaustive
def test_ldm4_at_full_width():
    """L1-Diff's notebook reports 274.06M -> 165.80M at a channel ratio of 0.2, its pruner's settings unknown."""
    with torch.no_grad():
        unet = UNet2DModel(**LDM4 | {"sample_size": 8})
    plan = Plan("test", prune_channels(unet, 0.2, weights_squared, rounding="up").edits)
    with torch.device("meta"):
        student = PrunedUNet2DModel.from_config(LDM4 | {"plan": plan.to_dict()})
    assert count_parameters(student) == 167_114_632
    arguments, conditions = probe_inputs(student)
    assert count_macs(student, arguments, conditions).without_attention_products == 51_462_966_288
