"""Layer losses equal one plain forward pass per layer, survive a kill, and lead to a plan."""

from dataclasses import replace

import pytest
import torch

from common.cost.macs import count_parameters
from common.errors import InputError
from common.pruning.layers import layer_sizes
from common.pruning.plan import Plan, apply_plan, edited
from common.scoring.noisy_batches import noisy_batches
from common.scoring.score_file import ScoreFile
from laptop_diff import list_layers
from laptop_diff.algorithm import layers_to_remove, output_losses
from laptop_diff.criteria import layer_losses
from laptop_diff.method import LaptopDiff

METHOD = LaptopDiff(
    ratio=0.4,
    unit="parameters",
    granularity="transformer",
    width_changing="shortcut",
    exclude=(),
    criterion="output",
    timesteps="even",
    guidance_scale=1.0,
    batch_size=4,
    copies=5,
    selection="knapsack",
    seed=0,
)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_output_losses_equal_a_forward_pass_per_layer(tiny_teacher, data_calibration, guidance_scale):
    unet = tiny_teacher.denoiser
    layers = list_layers(unet)
    fast = layer_losses(unet, layers, data_calibration, ScoreFile(), guidance_scale=guidance_scale, batch_size=4, copies=5)
    batches = noisy_batches(data_calibration, "even", 4, guidance_scale > 1, 0)
    for site, loss in output_losses(unet, layers, batches, guidance_scale).items():
        assert fast[site] == pytest.approx(loss, rel=1e-3, abs=1e-12), site


def test_the_plan_is_that_of_the_paper_s_problem(tiny_teacher, data_calibration):
    unet = tiny_teacher.denoiser
    layers, batches = list_layers(unet), noisy_batches(data_calibration, "even", 4, False, 0)
    losses = output_losses(unet, layers, batches)
    chosen = layers_to_remove(losses, layers, METHOD.ratio, count_parameters(unet))
    plan = METHOD.plan(unet, data_calibration, "tiny", None)
    assert sorted(edit.site for edit in plan.edits) == sorted(chosen)


def test_losses_do_not_depend_on_copies_but_on_the_layer(tiny_teacher, data_calibration):
    unet = tiny_teacher.denoiser
    layers = list_layers(unet)
    found = [layer_losses(unet, layers, data_calibration, ScoreFile(), batch_size=4, copies=copies) for copies in (1, 7)]
    assert all(found[0][site] == pytest.approx(found[1][site], rel=1e-3) for site in found[0])
    assert len(set(found[0].values())) == len(layers) and min(found[0].values()) > 0


def test_a_killed_criterion_goes_on(tiny_teacher, data_calibration, tmp_path):
    unet = tiny_teacher.denoiser
    layers = list_layers(unet)
    whole = layer_losses(unet, layers, data_calibration, ScoreFile(), batch_size=2)

    class Killed(Exception):
        pass

    def die(finished):
        raise Killed

    path = tmp_path / "losses.json"
    with pytest.raises(Killed):
        layer_losses(unet, layers, data_calibration, ScoreFile.open(path), batch_size=2, report=die)
    known = ScoreFile.open(path)
    assert all(len(known.known(layer.site)) == 1 for layer in layers)
    assert layer_losses(unet, layers, data_calibration, known, batch_size=2) == whole


def test_change_of_the_task_loss(tiny_teacher, data_calibration):
    unet = tiny_teacher.denoiser
    layers = list_layers(unet)[:3]
    found = layer_losses(unet, layers, data_calibration, ScoreFile(), criterion="task", batch_size=6)
    (batch,) = noisy_batches(data_calibration, "even", 6, False, 0)
    with torch.no_grad():
        before = (unet(batch.latents, batch.timesteps, **batch.conditions).sample - batch.target).square().mean()
        for layer in layers:
            with edited(unet, [layer.edit], {}):
                after = (unet(batch.latents, batch.timesteps, **batch.conditions).sample - batch.target).square().mean()
            assert found[layer.site] == pytest.approx((after - before).item(), rel=1e-2, abs=1e-6)


def test_alignment_magnitude_and_random(tiny_teacher, data_calibration):
    unet = tiny_teacher.denoiser
    layers = list_layers(unet)[:4]
    drops = layer_losses(unet, layers, data_calibration, ScoreFile(), criterion="alignment", copies=3)
    assert len(set(drops.values())) == 4
    with torch.no_grad():
        for parameter in unet.get_submodule(layers[0].site).parameters():
            parameter.mul_(1e-3)
    sizes = layer_losses(unet, layers, data_calibration, ScoreFile(), criterion="magnitude")
    assert min(sizes, key=sizes.get) == layers[0].site
    draws = [layer_losses(unet, layers, data_calibration, ScoreFile(), criterion="random", seed=seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("unit", ["parameters", "macs", "milliseconds"])
def test_the_plan_removes_what_was_asked(tiny_teacher, data_calibration, tmp_path, unit):
    unet = tiny_teacher.denoiser
    sizes, whole = layer_sizes(unet, list_layers(unet), unit, tmp_path, "tiny", data_calibration.null_condition)
    method = replace(METHOD, unit=unit, ratio=min(0.4, 0.9 * sum(sizes) / whole))  # times are as they are measured
    plan = method.plan(unet, data_calibration, "tiny", tmp_path)
    assert plan.settings["ratio_reached"] >= method.ratio and len(plan.scores) == len(list_layers(unet))
    assert method.plan(unet, data_calibration, "tiny", tmp_path) == plan
    whole = sum(p.numel() for p in unet.parameters())
    left = sum(p.numel() for p in apply_plan(unet, Plan.from_json(plan.to_json())).parameters())
    if unit == "parameters":
        assert 1 - left / whole == pytest.approx(plan.settings["ratio_reached"], rel=1e-9)
    assert left < whole


def test_losses_are_shared_by_a_sweep_over_ratios(tiny_teacher, data_calibration, tmp_path):
    for ratio in (0.2, 0.5):
        replace(METHOD, ratio=ratio).plan(tiny_teacher.denoiser, data_calibration, "tiny", tmp_path)
    assert len([*tmp_path.glob("*.json")]) == 1


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"ratio": 0.2, "selection": "lowest", "unit": "macs"}, True),
        ({"copies": 3}, False),
        ({"batch_size": 3}, False),
        ({"granularity": "transformer_block"}, False),
        ({"exclude": ("down_blocks.0.*",)}, False),
    ],
    ids=str,
)
def test_scores_are_shared_where_not_a_bit_can_differ(tiny_teacher, data_calibration, changes, same):
    """What shares a forward pass, and in batches of what size, changes the last bits of a loss."""
    keys = {method.score_key(data_calibration, "tiny") for method in (METHOD, replace(METHOD, **changes))}
    assert (len(keys) == 1) == same


def test_alignments_of_other_images_are_other_scores(tiny_teacher, data_calibration):
    def key(content):
        def alignment(latents, chosen):
            return 0.0

        alignment.content = content
        return replace(METHOD, criterion="alignment").score_key(replace(data_calibration, alignment=alignment), "tiny")

    assert key("these") == key("these") != key("others")


def test_bad_input_is_told(tiny_teacher, data_calibration):
    def plan(**changes):
        return replace(METHOD, **changes).plan(tiny_teacher.denoiser, data_calibration, "tiny", None)

    with pytest.raises(InputError, match="a number above 0 and below 1"):
        plan(ratio=1.2)
    with pytest.raises(InputError, match=r"all layers together are 0\.\d+ of the parameters"):
        plan(ratio=0.99)
    with pytest.raises(InputError, match="none of output, task"):
        plan(criterion="clip")
    with pytest.raises(InputError, match="none of even, uniform"):
        plan(timesteps="low")
    with pytest.raises(InputError, match="calibration set is empty"):
        empty = replace(data_calibration, data=lambda: (torch.zeros(0, 4, 8, 8), {}))
        layer_losses(tiny_teacher.denoiser, list_layers(tiny_teacher.denoiser), empty, ScoreFile())
