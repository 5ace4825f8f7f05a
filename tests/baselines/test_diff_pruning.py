"""Diff-Pruning: the threshold loop, importances against autograd, plans by variant, gradients that survive."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import nn
from torch.nn import functional as F

from baselines.diff_pruning import DiffPruning, Trial, accumulate_gradients, nearest_trial
from common.cost.macs import count_macs, count_parameters, probe_inputs
from common.diffusion.noise_schedule import noise_process
from common.errors import InputError
from common.pruning.plan import Plan, apply_plan
from common.runtime.seeding import mix_seed, seeded_normal

pytestmark = pytest.mark.slow

METHOD = DiffPruning(
    ratio=0.3, parameters=None, rounding="down", variant="diff_pruning", threshold=0.05, every=250, rows=4, exclude=(), seed=0
)


@pytest.fixture
def data_calibration(tiny_teacher, tiny_calibration):
    generator = torch.Generator().manual_seed(3)
    captions = [f"thing {index}, noto style" for index in range(6)]
    rows = torch.randn(6, 4, 8, 8, generator=generator), tiny_teacher.encode_captions(captions)
    return replace(tiny_calibration, data=lambda: rows)


class Scripted(nn.Module):
    """Its loss at timestep t is script[t] * weight^2 where the target is zero."""

    def __init__(self, script):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.script = script

    def forward(self, noisy, timesteps):
        return SimpleNamespace(sample=self.weight * self.script[timesteps[0]] ** 0.5 * torch.ones_like(noisy))


def scripted(script, **options):
    network = Scripted(script)
    scheduler = DDPMScheduler(num_train_timesteps=len(script), prediction_type="sample")
    calibration = SimpleNamespace(data=lambda: (torch.zeros(3, 4, 2, 2), {}), scheduler=scheduler, conditions={})
    losses = accumulate_gradients(network, calibration, **options)
    return [round(loss, 4) for loss in losses], network.weight.grad.item()


@pytest.mark.parametrize(
    ("threshold", "every", "counted"),
    [
        (0.0, 1, [1.0, 4.0, 3.0, 0.5, 0.3, 9.0, 0.8, 0.1]),
        (0.1, 1, [1.0, 4.0, 3.0, 0.5]),  # 0.3 < 0.1 * 4: later timesteps are not looked at, however large
        (0.07, 1, [1.0, 4.0, 3.0, 0.5, 0.3, 9.0, 0.8]),  # 0.1 < 0.07 * 9
        (0.2, 1, [1.0, 4.0, 3.0]),
        (0.2, 2, [1.0, 3.0]),
        (0.05, 2, [1.0, 3.0, 0.3, 0.8]),
        (1.0, 1, [1.0, 4.0]),
    ],
)
def test_the_loop_stops_at_the_first_loss_below_the_share_of_the_largest(threshold, every, counted):
    losses, gradient = scripted([1.0, 4.0, 3.0, 0.5, 0.3, 9.0, 0.8, 0.1], threshold=threshold, every=every)
    assert losses == counted
    assert gradient == pytest.approx(2 * sum(counted), rel=1e-5)  # the step that stops the loop does not count


def test_a_loss_that_is_no_number_is_told():
    with pytest.raises(InputError, match="loss at timestep 1 is nan"):
        scripted([1.0, float("nan"), 1.0], threshold=0.0)


def plain_gradients(unet, calibration, every, rows):
    """dL/dw of the summed losses, by one call of autograd."""
    latents, conditions = calibration.data()
    latents, conditions = latents[:rows], {name: value[:rows] for name, value in conditions.items()}
    noise = seeded_normal([mix_seed(0, 2, row) for row in range(rows)], latents.shape[1:])
    scheduler = noise_process(calibration.scheduler)
    total = 0.0
    unet.requires_grad_(True)
    for timestep in range(0, 1000, every):
        steps = torch.full((rows,), timestep)
        prediction = unet(scheduler.add_noise(latents, noise, steps), steps, **conditions).sample
        total = total + F.mse_loss(prediction, scheduler.target(latents, noise, steps))
    names = [name for name, _ in unet.named_parameters()]
    found = dict(zip(names, torch.autograd.grad(total, list(unet.parameters())), strict=True))
    unet.requires_grad_(False)
    return found


@pytest.mark.parametrize("variant", ["diff_pruning", "taylor"])
def test_the_channels_of_least_taylor_importance_go(tiny_teacher, data_calibration, variant):
    unet = tiny_teacher.denoiser
    plan = replace(METHOD, variant=variant, threshold=0.0).plan(unet, data_calibration, "tiny", None)
    gradients = plain_gradients(unet, data_calibration, METHOD.every, METHOD.rows)
    block = "down_blocks.1.resnets.0"
    weights = dict(unet.named_parameters())
    parts = []
    for name, dimension in ((f"{block}.conv1", 0), (f"{block}.conv2", 1), (f"{block}.time_emb_proj", 0)):
        product = (weights[f"{name}.weight"] * gradients[f"{name}.weight"]).transpose(0, dimension).flatten(1)
        parts.append(product.abs().sum(1) if variant == "diff_pruning" else product.sum(1).abs())
    by_place = torch.stack(parts).mean(0).view(4, 4).mean(0)  # four norm groups of four channels
    stay = by_place.argsort(descending=True)[:3].sort().values  # of 16 go 16 - floor(16 * 0.7) = 5, of each group floor(5 / 4)
    expected = (stay + 4 * torch.arange(4)[:, None]).flatten()
    assert torch.equal(plan.tensors[f"{block}.conv1.out"], expected)
    assert torch.equal(plan.tensors[f"{block}.conv2.in"], expected)
    share = 1 - by_place[stay].sum() / by_place.sum()
    assert plan.scores[f"{block}.conv1"] == pytest.approx(share.item(), rel=1e-3)
    assert plan.settings["timesteps_counted"] == 4


@pytest.mark.parametrize("variant", ["diff_pruning", "taylor", "magnitude", "random"])
@pytest.mark.exhaustive
def test_every_variant_gives_a_plan_of_the_same_size(tiny_teacher, data_calibration, variant):
    unet = tiny_teacher.denoiser
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    method = replace(METHOD, variant=variant)
    plan = method.plan(unet, data_calibration, "tiny", None)
    student = apply_plan(unet, plan)
    assert 1 - count_parameters(student) / count_parameters(unet) == pytest.approx(plan.settings["ratio_reached"])
    assert 0.3 < plan.settings["ratio_reached"] < 0.8
    again = method.plan(unet, data_calibration, "tiny", None)
    assert again == plan and all(torch.equal(again.tensors[name], value) for name, value in plan.tensors.items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in unet.parameters())
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())


# google/ddpm-cifar10-32, the U-Net of the paper's first table
CIFAR10 = {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}


@pytest.mark.parametrize(
    ("rounding", "parameters", "billions", "shares"),
    [
        ("down", 19_851_157, 3.4, (0.25, 154 / 512)),  # the authors' ddpm_prune.py with torch-pruning 1.2 counts this too
        ("up", 13_949_333, 2.1, (154 / 512, 0.5)),
    ],
)
def test_the_paper_s_ratio_gives_the_paper_s_size(rounding, parameters, billions, shares):
    """Table 1: 35.7M and 6.1G MACs (convolutions and linear maps) become 19.8M and 3.4G at a ratio of 0.3."""
    with torch.device("meta"):
        unet = UNet2DModel(**CIFAR10)
    pruned = UNet2DModel(**CIFAR10)
    method = replace(METHOD, variant="random", rounding=rounding)
    plan = method.plan(pruned, None, "", None)
    student = apply_plan(unet, replace(plan, tensors={name: value.to("meta") for name, value in plan.tensors.items()}))
    arguments, conditions = probe_inputs(unet)
    counts = [count_macs(network, arguments, conditions).without_attention_products / 1e9 for network in (unet, student)]
    assert (count_parameters(unet), count_parameters(student)) == (35_746_307, parameters)
    assert counts == pytest.approx([6.1, billions], abs=0.05)
    reached = {name: value for name, value in plan.settings.items() if name.endswith("_reached")}
    ends = reached.pop("least_in_a_group_reached"), reached.pop("most_in_a_group_reached")
    assert ends == pytest.approx(shares)
    assert ends[0] < reached.pop("channel_ratio_reached") < ends[1]
    assert reached == {"ratio_reached": pytest.approx(1 - parameters / 35_746_307)}


@pytest.mark.exhaustive
def test_variants_and_seeds_choose_differently(tiny_teacher, data_calibration):
    def kept(**changes):
        plan = replace(METHOD, **changes).plan(tiny_teacher.denoiser, data_calibration, "tiny", None)
        return torch.cat([plan.tensors[name] for name in sorted(plan.tensors)]).tolist()

    random = {"variant": "random"}
    choices = [kept(), kept(variant="taylor"), kept(variant="magnitude"), kept(**random), kept(**random, seed=1)]
    assert all(choices[i] != choices[j] for i in range(5) for j in range(i))


def test_gradients_are_shared_by_a_sweep_over_ratios(tiny_teacher, data_calibration, tmp_path, monkeypatch):
    unet = tiny_teacher.denoiser
    first = METHOD.plan(unet, data_calibration, "tiny", tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    monkeypatch.setattr("baselines.diff_pruning.accumulate_gradients", lambda *_, **__: pytest.fail("computed again"))
    again = METHOD.plan(unet, data_calibration, "tiny", tmp_path)
    assert again == first and all(torch.equal(again.tensors[name], value) for name, value in first.tensors.items())
    wider = replace(METHOD, ratio=0.5).plan(unet, data_calibration, "tiny", tmp_path)
    assert wider.settings["ratio_reached"] > first.settings["ratio_reached"]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="damaged"):
        METHOD.plan(unet, data_calibration, "tiny", tmp_path)


def test_other_options_need_other_gradients(tiny_teacher, data_calibration, tmp_path, monkeypatch):
    monkeypatch.setattr(DiffPruning, "_plan", lambda *_: None)  # what is done with them
    for changes in ({}, {"rows": 2}, {"every": 500}, {"threshold": 0.0}, {"seed": 1}):
        replace(METHOD, **changes).plan(tiny_teacher.denoiser, data_calibration, "tiny", tmp_path)
    assert len([*tmp_path.glob("*.safetensors")]) == 5
    replace(METHOD, variant="taylor").plan(tiny_teacher.denoiser, data_calibration, "tiny", tmp_path)
    assert len([*tmp_path.glob("*.safetensors")]) == 5  # taylor counts all timesteps, as threshold=0 does


SEARCHED = {"ratio": None, "variant": "magnitude"}
WIDTHS = (3, 8, 10)  # of pretended layers, each a square matrix


def pretended(channel_ratio, narrowest=0):
    kept = [max(1, math.floor(width * (1 - channel_ratio) + 1e-9)) for width in WIDTHS]
    if min(kept) < narrowest:
        raise InputError("too narrow")
    return Trial(channel_ratio, None, 1 - sum(width**2 for width in kept) / sum(width**2 for width in WIDTHS))


@pytest.mark.parametrize("parameters", [0.25, 0.3, 0.31, 0.5, 0.77, 0.9, 0.97])
def test_the_channel_ratio_nearest_to_the_share_is_found(parameters):
    steps = {pretended(place / width).removed for width in WIDTHS for place in range(1, width + 1)} | {pretended(1e-6).removed}
    found = nearest_trial(pretended, parameters)
    assert found == pretended(found.channel_ratio)
    assert abs(found.removed - parameters) == pytest.approx(min(abs(removed - parameters) for removed in steps), abs=1e-12)


@pytest.mark.parametrize("narrowest", [0, 2])
def test_what_can_be_reached_is_told_and_can_be_had(narrowest):
    def prune(channel_ratio):
        return pretended(channel_ratio, narrowest)

    def rounded_down(channel_ratio):
        return pretended(channel_ratio, narrowest) if channel_ratio > 0.1 else Trial(channel_ratio, None, 0.0)

    with pytest.raises(InputError, match=r"^method\.parameters=0\.01: the fewest channels that can go are 0\.\d+ of"):
        nearest_trial(rounded_down, 0.01)
    assert nearest_trial(rounded_down, 0.5) == nearest_trial(prune, 0.5)
    for parameters, told in ((0.01, "the fewest channels"), (0.995, "the most channels")):
        with pytest.raises(InputError, match=rf"^method\.parameters={parameters}: {told} that can go are 0\.\d+ of") as caught:
            nearest_trial(prune, parameters)
        reachable = float(str(caught.value).split("are ")[1].split()[0])
        assert nearest_trial(prune, reachable).removed == pytest.approx(reachable, abs=1e-4)


@pytest.mark.exhaustive
def test_a_share_of_the_parameters_is_the_ratio_found_for_it(tiny_teacher, data_calibration, tmp_path, monkeypatch):
    unet = tiny_teacher.denoiser
    monkeypatch.setattr("baselines.diff_pruning.HALVINGS", 3)
    accumulations = []

    def counted(*arguments, **options):
        accumulations.append(arguments)
        return accumulate_gradients(*arguments, **options)

    monkeypatch.setattr("baselines.diff_pruning.accumulate_gradients", counted)
    plan = replace(METHOD, ratio=None, parameters=0.6).plan(unet, data_calibration, "tiny", None)
    assert len(accumulations) == 1
    reached = plan.settings["ratio_reached"]
    assert 1 - count_parameters(apply_plan(unet, plan)) / count_parameters(unet) == pytest.approx(reached)
    by_ratio = replace(METHOD, ratio=plan.settings["channel_ratio"]).plan(unet, data_calibration, "tiny", tmp_path)
    assert by_ratio.edits == plan.edits and by_ratio.settings["ratio_reached"] == reached
    assert all(torch.equal(by_ratio.tensors[name], value) for name, value in plan.tensors.items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in unet.parameters())
    for step in (-1 / 8, 1 / 8):
        other = replace(METHOD, ratio=plan.settings["channel_ratio"] + step)
        assert abs(other.plan(unet, data_calibration, "tiny", tmp_path).settings["ratio_reached"] - 0.6) >= abs(reached - 0.6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratio": 0.0}, "method.ratio=0.0: a number above 0 and below 1"),
        ({"ratio": 1.0}, "method.ratio=1.0: a number above 0 and below 1"),
        (
            {"parameters": 0.5},
            r"^method\.ratio=0\.3, method\.parameters=0\.5, method\.budget=null: exactly one of them",
        ),
        ({"ratio": None}, r"^method\.ratio=null, method\.parameters=null, method\.budget=null: exactly one of them is needed"),
        ({"ratio": None, "parameters": 0.0}, "method.parameters=0.0: a number above 0 and below 1"),
        ({"ratio": None, "parameters": 1.0}, "method.parameters=1.0: a number above 0 and below 1"),
        ({"exclude": ("*",)}, "A share of 0.3 removes no channel"),
        ({**SEARCHED, "parameters": 0.5, "exclude": ("*",)}, "the most channels that can go are 0.0 of"),
        ({"rounding": "nearest"}, "method.rounding='nearest' is none of down, up"),
        ({**SEARCHED, "parameters": 0.001}, r"method\.parameters=0\.001: the fewest channels that can go are 0\.\d+ of"),
        ({**SEARCHED, "parameters": 0.999}, r"method\.parameters=0\.999: the most channels that can go are 0\.\d+ of"),
        ({"variant": "l1"}, "method.variant='l1' is none of diff_pruning, taylor, magnitude, random"),
        ({"threshold": -0.1}, "method.threshold=-0.1: a number of at least 0 and up to 1"),
        ({"every": 0}, "method.every=0: a whole number of at least 1"),
        ({"rows": 0}, "method.rows=0: a whole number of at least 1"),
        ({"exclude": ("nothing.*",)}, r"'nothing\.\*' matches no module"),
    ],
)
def test_bad_input_is_told(tiny_teacher, data_calibration, changes, message, monkeypatch):
    monkeypatch.setattr("baselines.diff_pruning.HALVINGS", 2)
    with pytest.raises(InputError, match=message):
        replace(METHOD, **changes).plan(tiny_teacher.denoiser, data_calibration, "tiny", None)


def test_an_empty_calibration_set_is_told(tiny_teacher, data_calibration):
    empty = replace(data_calibration, data=lambda: (torch.zeros(0, 4, 8, 8), {}))
    with pytest.raises(InputError, match="calibration set is empty"):
        METHOD.plan(tiny_teacher.denoiser, empty, "tiny", None)


def test_the_plan_goes_through_json_and_a_folder(tiny_teacher, data_calibration, tmp_path):
    plan = METHOD.plan(tiny_teacher.denoiser, data_calibration, "tiny", None)
    assert Plan.from_json(plan.to_json()) == plan
    plan.save(tmp_path)
    students = [apply_plan(tiny_teacher.denoiser, found).state_dict() for found in (plan, Plan.load(tmp_path))]
    assert all(torch.equal(students[0][name], students[1][name]) for name in students[0])
