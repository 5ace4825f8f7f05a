"""Block influence: by hand, for each stream, scattered and contiguous."""

import inspect
from dataclasses import replace
from itertools import combinations

import diffusers
import pytest
import torch
from torch.nn import functional as F

from baselines.block_influence import BlockInfluence, influences, least_interval
from common.cost.macs import count_parameters
from common.denoisers.denoiser import architecture_of
from common.diffusion.sampling import predict
from common.errors import InputError
from common.pruning.layers import list_layers
from common.pruning.plan import apply_plan
from common.scoring.noisy_batches import noisy_batches
from tests.common.denoisers.test_families import NETWORKS

METHOD = BlockInfluence(ratio=0.3, stream="image", arrangement="scattered", timesteps="even", batch_size=4, seed=0)


@pytest.fixture
def data_calibration(tiny_teacher, tiny_calibration):
    captions = [f"thing {index}, noto style" for index in range(6)]
    rows = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(3)), tiny_teacher.encode_captions(captions)
    return replace(tiny_calibration, data=lambda: rows)


def test_a_score_is_the_angle_between_input_and_output(tiny_teacher, data_calibration):
    unet = tiny_teacher.denoiser
    plan = METHOD.plan(unet, data_calibration, "tiny", None)
    assert not any(module._forward_hooks for module in unet.modules())
    layer = next(each for each in list_layers(unet) if each.kind == "transformer")
    summed = 0.0
    for batch in noisy_batches(data_calibration, "even", 4, False, 0):
        seen = {}
        module = unet.get_submodule(layer.site)
        handle = module.register_forward_hook(lambda _, inputs, output, seen=seen: seen.update(x=inputs[0], y=output[0]))
        predict(unet, batch.latents, batch.timesteps, batch.conditions)
        handle.remove()
        cosine = (seen["x"] * seen["y"]).sum(1) / seen["x"].norm(dim=1) / seen["y"].norm(dim=1)
        summed += len(batch.latents) / 6 * (1 - cosine.mean().item())
    assert plan.scores[layer.site] == pytest.approx(summed, rel=1e-4)
    gone = 1 - count_parameters(apply_plan(unet, plan)) / count_parameters(unet)
    assert gone == pytest.approx(plan.settings["ratio_reached"]) and gone >= 0.3
    assert METHOD.plan(unet, data_calibration, "tiny", None) == plan


def test_a_layer_that_changes_the_width_is_told_by_its_shortcut(tiny_teacher, data_calibration):
    unet = tiny_teacher.denoiser
    layer = next(each for each in list_layers(unet) if each.edit.operation == "shortcut")
    module = unet.get_submodule(layer.site)
    (batch, *_) = noisy_batches(data_calibration, "even", 4, False, 0)
    seen = {}
    handle = module.register_forward_hook(lambda _, inputs, output: seen.update(x=inputs[0], y=output))
    with influences(unet, [layer]) as found:
        predict(unet, batch.latents, batch.timesteps, batch.conditions)
    handle.remove()
    kept = module.conv_shortcut(seen["x"]) / module.output_scale_factor
    expected = 1 - F.cosine_similarity(seen["y"], kept, dim=1).mean().item()
    assert found[layer.site, "hidden_states"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_stream_of_a_block_has_its_own(name):
    torch.manual_seed(0)
    network = getattr(diffusers, name)(**NETWORKS[name]).eval().requires_grad_(False)
    architecture = architecture_of(network)
    conditions = architecture.probe_conditions(network, 5)
    conditions = {key: torch.rand_like(value) if value.is_floating_point() else value for key, value in conditions.items()}
    seen = {}

    def watch(module, args, kwargs, output):
        seen["inputs"] = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        seen["output"] = output

    layers = list_layers(network)
    handle = network.get_submodule(layers[0].site).register_forward_hook(watch, with_kwargs=True)
    with influences(network, layers) as found:
        predict(network, torch.randn(1, architecture.latent_shape(network)[0], 8, 8), torch.tensor([500]), conditions)
    handle.remove()
    assert {site for site, _ in found} == {layer.site for layer in layers}
    streams = layers[0].edit.sizes.get("returns", ["hidden_states"])
    outputs = seen["output"] if isinstance(seen["output"], tuple) else (seen["output"],)
    for stream, output in zip(streams, outputs, strict=True):
        expected = 1 - F.cosine_similarity(output, seen["inputs"][stream], dim=-1).mean().item()
        assert found[layers[0].site, stream] == pytest.approx(expected, abs=1e-6) and expected > 0


def test_the_stream_that_is_asked_for_tells():
    streams = {"hidden_states": 0.1, "encoder_hidden_states": 0.5}
    assert METHOD.told_by(streams) == 0.1
    assert replace(METHOD, stream="text").told_by(streams) == 0.5
    assert replace(METHOD, stream="mean").told_by(streams) == pytest.approx(0.3)
    assert replace(METHOD, stream="text").told_by({"hidden_states": 0.1}) == 0.1


def test_neighbours_are_the_ones_whose_influences_sum_to_the_least():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        scores, sizes = (torch.rand(7, generator=generator).tolist() for _ in range(2))
        budget = 0.6 * sum(sizes)
        spans = [list(range(first, end)) for first, end in combinations(range(8), 2)]
        enough = [span for span in spans if sum(sizes[index] for index in span) >= budget]
        best = min(enough, key=lambda span: sum(scores[index] for index in span))
        assert least_interval(scores, sizes, budget) == best
    contiguous = replace(METHOD, arrangement="contiguous")
    assert contiguous.select([1, 0.1, 1, 0.2, 0.3], [1] * 5, 2) == [3, 4]
    assert METHOD.select([1, 0.1, 1, 0.2, 0.3], [1] * 5, 2) == [1, 3]


def test_halves_are_told(tiny_teacher, data_calibration):
    with pytest.raises(InputError, match="block influence is of whole layers"):
        replace(METHOD, granularity="half_block").plan(tiny_teacher.denoiser, data_calibration, "tiny", None)
