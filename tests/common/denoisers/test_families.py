"""The field's diffusion transformers in small: how each is called, which layers it has, and what is left without one."""

import copy

import diffusers
import pytest
import torch
from diffusers import FluxPipeline

from common.cost.macs import count_macs, count_parameters, probe_inputs
from common.denoisers.denoiser import architecture_of
from common.denoisers.transformers import latents_of, places_of, tokens_of
from common.diffusion.sampling import predict
from common.errors import InputError
from common.export.compact import compact, old_name, own_name, renumbered
from common.models.lora import for_student
from common.pruning.layers import list_layers
from common.pruning.plan import Plan, apply_plan
from common.scoring.edited_copies import edited_outputs

HEADS = {"attention_head_dim": 16, "num_attention_heads": 2}
NETWORKS = {
    "SanaTransformer2DModel": {
        **{"patch_size": 1, "in_channels": 4, "out_channels": 4, "num_layers": 3, "sample_size": 8, "caption_channels": 8},
        **{"attention_head_dim": 4, "num_attention_heads": 2, "num_cross_attention_heads": 2, "cross_attention_head_dim": 4},
        "cross_attention_dim": 8,
    },
    "DiTTransformer2DModel": {
        **{"sample_size": 8, "num_layers": 3, "patch_size": 2, "in_channels": 4, "out_channels": 8, "num_embeds_ada_norm": 8},
        **{"attention_head_dim": 4, "num_attention_heads": 2},
    },
    "SD3Transformer2DModel": {
        **{"sample_size": 8, "patch_size": 1, "in_channels": 4, "out_channels": 4, "num_layers": 3, "attention_head_dim": 8},
        **{"num_attention_heads": 2, "caption_projection_dim": 16, "joint_attention_dim": 16, "pooled_projection_dim": 32},
        **{"pos_embed_max_size": 96, "dual_attention_layers": (0,)},
    },
    "FluxTransformer2DModel": {
        **{"patch_size": 1, "in_channels": 16, "num_layers": 2, "num_single_layers": 2, "joint_attention_dim": 16, **HEADS},
        **{"pooled_projection_dim": 16, "axes_dims_rope": [4, 4, 8], "guidance_embeds": True},
    },
    "Flux2Transformer2DModel": {
        **{"patch_size": 1, "in_channels": 16, "num_layers": 2, "num_single_layers": 2, "joint_attention_dim": 16, **HEADS},
        **{"timestep_guidance_channels": 16, "axes_dims_rope": [4, 4, 4, 4]},
    },
    "QwenImageTransformer2DModel": {
        **{"patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 3, "joint_attention_dim": 16, **HEADS},
        **{"guidance_embeds": False, "axes_dims_rope": (8, 4, 4)},
    },
}
BLOCKS = {"SanaTransformer2DModel": 3, "DiTTransformer2DModel": 2, "SD3Transformer2DModel": 3}  # those that can go; else 4
HALVES = {"SanaTransformer2DModel": 9, "DiTTransformer2DModel": 6, "SD3Transformer2DModel": 9, "QwenImageTransformer2DModel": 9}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    torch.manual_seed(0)
    return getattr(diffusers, request.param)(**NETWORKS[request.param]).eval().requires_grad_(False)


@pytest.fixture
def inputs(network):
    """Latents and timesteps of two rows, and their conditions."""
    architecture = architecture_of(network)

    def filled(name, value):
        rows = value.expand(2, *value.shape[1:])
        return torch.randn(rows.shape) if value.is_floating_point() and "mask" not in name else rows

    conditions = {name: filled(name, value) for name, value in architecture.probe_conditions(network, 5).items()}
    return (torch.randn(2, architecture.latent_shape(network)[0], 8, 8), torch.tensor([900, 100])), conditions


def test_a_prediction_is_of_the_latents_shape(network, inputs):
    (latents, timesteps), conditions = inputs
    found = predict(network, latents, timesteps, conditions)
    assert found.shape == latents.shape and found.isfinite().all()
    for row in range(2):
        own = {name: value[row : row + 1] for name, value in conditions.items()}
        alone = predict(network, latents[row : row + 1], timesteps[row], own)
        assert torch.allclose(alone, found[row : row + 1], atol=1e-4)


@pytest.mark.parametrize("granularity", ["transformer", "half_block"])
def test_each_layer_alone(network, inputs, granularity):
    """A student without it is the network with its edit, has so many parameters less, and is what scoring sees."""
    layers, name = list_layers(network, granularity), type(network).__name__
    assert len(layers) == (
        BLOCKS.get(name, 3 if "Qwen" in name else 4) if granularity == "transformer" else HALVES.get(name, 6)
    )
    intact = predict(network, *inputs[0], inputs[1])

    def measure(one, other):
        return (one - other).square().mean().item()

    found = edited_outputs(network, [layer.edit for layer in layers], {}, *inputs, 2, measure)
    for layer in layers:
        student = apply_plan(network, Plan("some", (layer.edit,)))
        assert count_parameters(network) - count_parameters(student) == layer.parameters
        assert measure(intact, predict(student, *inputs[0], inputs[1])) == pytest.approx(found[layer.site], rel=1e-3, abs=1e-12)


def test_a_student_without_several_blocks_is_saved_and_loaded(network, inputs, tmp_path):
    student = apply_plan(network, Plan("some", tuple(layer.edit for layer in list_layers(network)[-2:])))
    found = predict(student, *inputs[0], inputs[1])
    student.save_pretrained(tmp_path)
    again = diffusers.AutoModel.from_pretrained(str(tmp_path), trust_remote_code=True)
    assert torch.equal(predict(again.eval(), *inputs[0], inputs[1]), found)


def test_macs_are_counted(network):
    assert count_macs(network, *probe_inputs(network)).total > 0


def test_latents_are_packed_as_by_flux():
    latents = torch.randn(2, 4, 6, 8)
    tokens = tokens_of(latents)
    assert torch.equal(tokens, FluxPipeline._pack_latents(latents, 2, 4, 6, 8))
    assert torch.equal(latents_of(tokens, latents.shape), latents)
    assert torch.equal(places_of(latents, 3), FluxPipeline._prepare_latent_image_ids(2, 3, 4, "cpu", torch.float32))


@pytest.mark.parametrize("gone", [(-1,), (0,), (-2, -1)])
def test_a_compact_network_of_the_stock_class_gives_the_same(network, inputs, gone, tmp_path):
    """Blocks at either end and in the middle; of Stable Diffusion 3 another block becomes the last."""
    layers = list_layers(network)
    chosen = [layers[index] for index in gone]
    student = apply_plan(network, Plan("some", tuple(layer.edit for layer in chosen)))
    if all(layer in chosen for layer in layers if layer.site.startswith("single")) and "Flux" in type(network).__name__:
        with pytest.raises(InputError, match="All 2 blocks of single_transformer_blocks are gone"):
            compact(student)
        return
    stock, numbers = compact(student)
    assert type(stock) is type(network)
    found = predict(stock, *inputs[0], inputs[1])
    assert torch.allclose(found, predict(student, *inputs[0], inputs[1]), atol=1e-6)
    without = {layer.site for layer in chosen}
    assert {layer.site for layer in layers} - without <= set(numbers.values()) and not without & set(numbers.values())
    for new, old in numbers.items():
        assert own_name(f"{old}.attn.x", numbers) == f"{new}.attn.x" and old_name(f"{new}.attn.x", numbers) == f"{old}.attn.x"
    stock.save_pretrained(tmp_path)
    again = type(network).from_pretrained(tmp_path).eval()
    assert torch.equal(predict(again, *inputs[0], inputs[1]), found)


def test_what_is_no_whole_block_does_not_become_a_stock_class(network):
    half = list_layers(network, "half_block")[0]
    with pytest.raises(InputError, match=r"is zero: where more than whole blocks change"):
        compact(apply_plan(network, Plan("some", (half.edit,))))


def test_caches_of_diffusers_take_what_stands_for_blocks():
    from diffusers import FirstBlockCacheConfig, MagCacheConfig
    from diffusers.hooks import apply_first_block_cache

    settings = NETWORKS["FluxTransformer2DModel"] | {"num_layers": 3, "num_single_layers": 3}
    torch.manual_seed(0)
    network = diffusers.FluxTransformer2DModel(**settings).eval()
    layers = {layer.site: layer.edit for layer in list_layers(network)}
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([500])
    conditions = architecture_of(network).probe_conditions(network, 5)

    def student(*sites):
        return apply_plan(network, Plan("x", tuple(layers[site] for site in sites)))

    expected = predict(student("transformer_blocks.1", "single_transformer_blocks.0"), *inputs, conditions)
    for config in (FirstBlockCacheConfig(threshold=1e-6), MagCacheConfig(num_inference_steps=2, calibrate=True)):
        pruned = student("transformer_blocks.1", "single_transformer_blocks.0")
        pruned.enable_cache(config)
        with pruned.cache_context("a"), torch.no_grad():
            assert torch.allclose(predict(pruned, *inputs, conditions), expected, atol=1e-5)
            predict(pruned, *inputs, conditions)
        first = student("transformer_blocks.0")
        with pytest.raises(ValueError, match="judges by what the first block changes"):
            first.enable_cache(config)
    with pytest.raises(ValueError, match="not registered"):
        first = student("transformer_blocks.0")
        apply_first_block_cache(first, FirstBlockCacheConfig())
        predict(first, *inputs, conditions)
    copied = copy.deepcopy(pruned)
    assert torch.is_tensor(next(copied.parameters()))


@pytest.mark.parametrize("name", ["FluxTransformer2DModel", "SD3Transformer2DModel"])
def test_a_lora_of_the_teacher_is_never_put_on_other_blocks(name):
    """With identities in place it keeps its names, in a stock class with fewer blocks it goes through the map of blocks."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    torch.manual_seed(0)
    network = getattr(diffusers, name)(**NETWORKS[name] | {"num_layers": 3}).eval().requires_grad_(False)
    architecture, plain = architecture_of(network), copy.deepcopy(network)
    network.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_out.0"], init_lora_weights=False))
    weights = {f"transformer.{key}": value for key, value in get_peft_model_state_dict(network).items()}
    network.fuse_lora()
    network.unload_lora()
    edits = tuple(layer.edit for layer in list_layers(plain) if layer.site.endswith(".1"))
    plan = Plan("some", edits)
    inputs = torch.randn(1, architecture.latent_shape(plain)[0], 8, 8), torch.tensor([500])
    conditions = {key: torch.rand_like(value) for key, value in architecture.probe_conditions(plain, 5).items()}
    expected = predict(apply_plan(network, plan), *inputs, conditions)

    student = apply_plan(plain, plan)
    own, left_out = for_student(weights, plan, {"transformer": student})
    assert len(own) + len(left_out) == len(weights) and all("is gone (skip)" in why for why in left_out.values()) and left_out
    stock, numbers = compact(student)
    anew, gone = renumbered(weights, numbers)
    assert set(gone) == set(left_out) and len(anew) == len(own) and not any(".2." in key for key in anew if "single" not in key)
    for smaller, lora in ((student, own), (stock, anew)):
        before = predict(smaller, *inputs, conditions)
        smaller.load_lora_adapter(lora, prefix="transformer")
        found = predict(smaller, *inputs, conditions)
        assert torch.allclose(found, expected, atol=1e-4) and not torch.allclose(before, expected, atol=1e-3)
