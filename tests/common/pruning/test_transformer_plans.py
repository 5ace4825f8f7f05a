"""Blocks of diffusion transformers, and their halves, as layers: listed, removed, saved and loaded."""

import pytest
import torch
from diffusers import AutoModel

from common.cost.macs import count_parameters
from common.diffusion.sampling import predict
from common.models.loading import load_denoiser
from common.pruning.layers import list_layers
from common.pruning.plan import Plan, apply_plan, edited
from common.scoring.edited_copies import edited_outputs


@pytest.fixture(scope="module")
def inputs(tiny_dit):
    conditions = tiny_dit.encode_captions(["a cat", "the longest of these"])
    return (torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([700.0, 30.0])), conditions


def test_blocks_and_halves(tiny_dit):
    blocks, halves = (list_layers(tiny_dit.denoiser, granularity) for granularity in ("transformer", "half_block"))
    assert [layer.site for layer in blocks] == [f"transformer_blocks.{index}" for index in range(4)]
    assert [layer.site for layer in halves[:3]] == [f"transformer_blocks.0.{name}" for name in ("attn1", "attn2", "ff")]
    assert [layer.kind for layer in halves[:3]] == ["attention", "attention", "feed_forward"] and len(halves) == 12
    assert blocks[0].parameters == sum(layer.parameters for layer in halves[:3]) + 6 * 16  # and its table of shifts and scales


@pytest.mark.parametrize("granularity", ["transformer", "half_block"])
def test_a_student_is_the_network_with_its_edits(tiny_dit, inputs, granularity, tmp_path):
    layers = list_layers(tiny_dit.denoiser, granularity)
    plan = Plan("some", tuple(layer.edit for layer in layers[1::2]))
    student = apply_plan(tiny_dit.denoiser, plan)
    assert count_parameters(tiny_dit.denoiser) - count_parameters(student) == sum(layer.parameters for layer in layers[1::2])
    found = predict(student, *inputs[0], inputs[1])
    with edited(tiny_dit.denoiser, list(plan.edits), {}) as network:
        assert torch.equal(predict(network, *inputs[0], inputs[1]), found)
    assert not torch.allclose(predict(tiny_dit.denoiser, *inputs[0], inputs[1]), found)
    student.save_pretrained(tmp_path / "student")
    for again in (
        load_denoiser(tmp_path / "student"),
        AutoModel.from_pretrained(str(tmp_path / "student"), trust_remote_code=True),
    ):
        assert type(again).__name__ == "PrunedPixArtTransformer2DModel"
        assert torch.equal(predict(again, *inputs[0], inputs[1]), found)


def test_without_a_block_its_stream_passes(tiny_dit, inputs):
    seen = {}
    student = apply_plan(tiny_dit.denoiser, Plan("some", (list_layers(tiny_dit.denoiser)[2].edit,)))
    for index in (1, 2):
        hook = lambda module, given, output, index=index: seen.update({index: output})  # noqa: E731
        student.transformer_blocks[index].register_forward_hook(hook)
    predict(student, *inputs[0], inputs[1])
    assert torch.equal(seen[1], seen[2])


@pytest.mark.parametrize("granularity", ["transformer", "half_block"])
def test_many_edited_copies_at_once_are_each_by_itself(tiny_dit, inputs, granularity):
    edits = [layer.edit for layer in list_layers(tiny_dit.denoiser, granularity)]
    outputs = {}

    def measure(intact, changed):
        return (changed - intact).square().mean().item()

    found = edited_outputs(tiny_dit.denoiser, edits, {}, *inputs, 3, measure)
    intact = predict(tiny_dit.denoiser, *inputs[0], inputs[1])
    for edit in edits:
        with edited(tiny_dit.denoiser, [edit], {}) as network:
            outputs[edit.site] = measure(intact, predict(network, *inputs[0], inputs[1]))
    assert found == pytest.approx(outputs, rel=1e-3) and all(outputs.values())


def test_training_goes_through_checkpointed_blocks(tiny_dit, inputs):
    """Under gradient checkpointing blocks are called by position."""
    student = apply_plan(tiny_dit.denoiser, Plan("some", (list_layers(tiny_dit.denoiser)[1].edit,))).train()
    student.requires_grad_(True)
    plain = torch.autograd.grad(predict(student, *inputs[0], inputs[1]).square().sum(), student.proj_out.weight)[0]
    student.enable_gradient_checkpointing()
    found = torch.autograd.grad(predict(student, *inputs[0], inputs[1]).square().sum(), student.proj_out.weight)[0]
    assert torch.allclose(found, plain)
