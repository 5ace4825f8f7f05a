"""A transformer that diffusers does not have, declared from outside: what a person writes stands between the two marks."""

import inspect
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from common.cost.macs import count_macs, count_parameters, probe_inputs

# what a person writes
from common.denoisers.denoiser import ARCHITECTURES, declare, zeros_like_weights
from common.denoisers.transformers import Transformer
from common.diffusion.sampling import predict
from common.pruning.layers import list_layers
from common.pruning.plan import Plan, apply_plan
from common.scoring.edited_copies import edited_outputs
from ld_pruner import list_operators
from tests.common.denoisers.outside_network import OutsideTransformer2DModel


class Outside(Transformer):
    """Its blocks take the image as `x` and the text as `context`, and return (x, context); it is told the time as a share."""

    streams: ClassVar = {"OutsideBlock": ("x", "context")}
    text_width = "text_width"

    def arguments(self, network, latents, timesteps, conditions):
        return {"image": latents, "time": timesteps / 1000, "text": conditions["encoder_hidden_states"]}

    def probe_conditions(self, network, tokens):
        return {"encoder_hidden_states": zeros_like_weights(network, 1, tokens, network.config.text_width)}


declare(Outside(), "OutsideTransformer2DModel")
# to here


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return OutsideTransformer2DModel().eval().requires_grad_(False)


def test_it_takes_at_most_forty_lines():
    text = Path(__file__).read_text()
    assert text.split("# what a person writes")[1].split("# to here")[0].count("\n") <= 40


def test_it_is_pruned_as_the_others_are(network, tmp_path):
    inputs = (torch.randn(2, 4, 8, 8), torch.tensor([900.0, 10.0]))
    conditions = {"encoder_hidden_states": torch.randn(2, 3, 6)}
    intact = predict(network, *inputs, conditions)
    blocks = list_layers(network)
    assert [(layer.site, layer.edit.operation) for layer in blocks] == [(f"blocks.{at}", "skip") for at in range(3)]
    assert {operator.site for operator in list_operators(network, "transformer_block")} == {layer.site for layer in blocks}
    found = edited_outputs(
        network, [each.edit for each in blocks], {}, inputs, conditions, 2, lambda a, b: (a - b).square().mean().item()
    )
    for layer in blocks:
        student = apply_plan(network, Plan("some", (layer.edit,)))
        assert count_parameters(network) - count_parameters(student) == layer.parameters
        changed = (predict(student, *inputs, conditions) - intact).square().mean().item()
        assert changed == pytest.approx(found[layer.site], rel=1e-4) and changed > 0
    assert type(student).__name__ == "PrunedOutsideTransformer2DModel" and student.config.plan["edits"]
    assert type(student).from_config(student.config).blocks[2].returns == ("x", "context")
    assert count_macs(network, *probe_inputs(network)).total > count_macs(student, *probe_inputs(student)).total > 0


def test_a_block_is_called_as_its_own_signature_says(network):
    block = network.blocks[0]
    names = list(inspect.signature(block.forward).parameters)
    skipped = apply_plan(network, Plan("some", (list_layers(network)[0].edit,))).blocks[0]
    x, context = torch.randn(1, 2, 8), torch.randn(1, 3, 8)
    assert names == ["x", "context"] and isinstance(block, nn.Module)
    for found in (skipped(x, context), skipped(context=context, x=x), skipped(x, context=context)):
        assert found[0] is x and found[1] is context
    assert ARCHITECTURES["OutsideTransformer2DModel"].part == "transformer"
