"""Several edited copies in one forward pass equal the same edits made one at a time."""

import torch

from common.pruning.layers import list_layers
from common.pruning.plan import edited
from common.scoring.edited_copies import PrefixCache, edited_copies, edited_outputs
from ld_pruner.initial_weights import initial_weights
from ld_pruner.operators import list_operators


def inputs(copies=1):
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(2, 4, 8, 8, generator=generator)
    states = torch.randn(2, 12, 16, generator=generator)
    return (noisy.repeat(copies, 1, 1, 1), torch.tensor([3, 700]).repeat(copies)), {
        "encoder_hidden_states": states.repeat(copies, 1, 1)
    }


@torch.no_grad()
def test_copies_equal_single_edits(tiny_teacher):
    unet = tiny_teacher.denoiser
    operators = list_operators(unet)
    tensors = initial_weights(unet, operators, "random", None, seed=0)
    sites = {operator.site for operator in operators}
    # nested ones and two edits at one site are among them
    chosen = [operator for operator in operators if operator.site.startswith("down_blocks.1")][:12]
    assert any(other.site != o.site and other.site.startswith(f"{o.site}.") for o in chosen for other in chosen)
    arguments, conditions = inputs(len(chosen))
    with edited_copies(unet, [operator.edit for operator in chosen], tensors):
        together = unet(*arguments, **conditions).sample.unflatten(0, (len(chosen), -1))
    single_arguments, single_conditions = inputs()
    for operator, output in zip(chosen, together, strict=True):
        with edited(unet, [operator.edit], tensors):
            alone = unet(*single_arguments, **single_conditions).sample
        assert torch.allclose(output, alone, atol=1e-5), operator.site
    assert {operator.site for operator in list_operators(unet)} == sites


@torch.no_grad()
def test_replayed_prefix_equals_computing_it(tiny_teacher):
    unet = tiny_teacher.denoiser
    cache = PrefixCache(unet)
    arguments, conditions = inputs()
    plain = cache.record(*arguments, conditions)
    assert cache.position("conv_norm_out") == len(cache.order) > 30
    blocks = cache.position("up_blocks.1.resnets.1.conv1")
    computed = []
    handles = [unet.get_submodule(name).register_forward_hook(lambda *_: computed.append(1)) for name in cache.order]
    repeated_arguments, repeated_conditions = inputs(3)
    with cache.replayed([blocks] * 3):
        replayed = unet(*repeated_arguments, **repeated_conditions).sample
    for handle in handles:
        handle.remove()
    assert len(computed) == len(cache.order) - blocks
    assert torch.allclose(replayed, plain.repeat(3, 1, 1, 1), atol=1e-5)
    assert torch.equal(unet(*arguments, **conditions).sample, plain)


@torch.no_grad()
def test_each_copy_is_computed_from_its_own_edit_on(tiny_teacher):
    unet = tiny_teacher.denoiser
    arguments, conditions = inputs()
    edits = [layer.edit for layer in list_layers(unet, "transformer_block")]
    rows = []
    handle = unet.up_blocks[3].resnets[2].register_forward_hook(lambda _m, given, _o: rows.append(len(given[0])))
    outputs = []

    def measure(intact, changed):
        outputs.append((intact, changed))
        return float(len(outputs))

    found = edited_outputs(unet, edits, {}, arguments, conditions, 7, measure)
    handle.remove()
    assert sum(rows[1:]) < 2 * len(edits)  # the last copies need not compute this block
    assert found.keys() == {edit.site for edit in edits}
    for edit in edits:
        intact, changed = outputs[int(found[edit.site]) - 1]
        assert torch.allclose(intact, unet(*arguments, **conditions).sample, atol=1e-6)
        with edited(unet, [edit], {}):
            assert torch.allclose(changed, unet(*arguments, **conditions).sample, atol=1e-5), edit.site
