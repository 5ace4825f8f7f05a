"""Which blocks learn alone, on what, and that nothing else of the student changes."""

import copy

import pytest
import torch

from common.denoisers.denoiser import architecture_of
from common.diffusion.sampling import predict
from common.errors import InputError
from common.pruning.layers import list_layers
from common.pruning.plan import Plan, apply_plan
from common.training.block_local import LocalOutputs, Segment, as_streams, list_segments, segments_of
from common.training.distillation import DenoiserTraining
from common.training.schedules import scheduler
from tests.common.denoisers.test_families import inputs, network  # noqa: F401


def pruned(teacher, *numbers, granularity="transformer"):
    layers = list_layers(teacher, granularity)
    return apply_plan(teacher, Plan("some", tuple(layers[number].edit for number in numbers)))


@pytest.mark.parametrize(
    ("gone", "expected"),
    [
        ("b", [("a", "a", "b")]),
        ("bc", [("a", "a", "c")]),
        ("ac", [("b", "a", "c")]),
        ("ab", [("c", "a", "c")]),  # the first one kept stands for those before it too
        ("e", [("d", "d", "e")]),
        ("be", [("a", "a", "b"), ("d", "d", "e")]),
        ("", []),
        ("abcde", []),
    ],
)
def test_segments(gone, expected):
    left = {site: torch.nn.Linear(1, 1) for site in "abcde" if site not in gone}
    found = segments_of(list("abcde"), left)
    assert found == [Segment(*each) for each in expected]


def test_a_block_is_given_the_teachers_input(network, inputs):  # noqa: F811
    """Of each family: what the block before makes of it, and what the removed one gave, in each stream."""
    layers = list_layers(network)
    removed = layers[-1].site
    blocks = dict(architecture_of(network).blocks(network))
    before = list(blocks)[list(blocks).index(removed) - 1]
    student = apply_plan(network, Plan("some", (layers[-1].edit,)))
    found = {}
    handles = [
        network.get_submodule(site).register_forward_hook(lambda _m, _i, output, site=site: found.update({site: output}))
        for site in (before, removed)
    ]
    local = LocalOutputs(student, network)
    assert local.segments == [Segment(before, before, removed)]
    predict(network, *inputs[0], inputs[1])
    ours, theirs = local.pairs()
    for handle in handles:
        handle.remove()
    both = list(zip(as_streams(found[before]), as_streams(found[removed]), strict=True))
    expected = [(one, other) for one, other in both if one is not None and other is not None]
    assert len(ours) == len(theirs) == len(expected) > 0
    for one, other, pair in zip(ours, theirs, expected, strict=True):
        assert torch.allclose(one, pair[0], atol=1e-6) and torch.equal(other, pair[1])
    local.remove()
    assert not any(block.module._forward_hooks or block.module._forward_pre_hooks for block in blocks.values())


def test_halves_and_what_cannot_be_trained_so(tiny_dit, tiny_teacher):
    halved = pruned(tiny_dit.denoiser, 4, granularity="half_block")
    (only,) = list_segments(halved, tiny_dit.denoiser)
    assert only.kept == only.first == only.last == "transformer_blocks.1"
    with pytest.raises(InputError, match="removes no block"):
        list_segments(copy.deepcopy(tiny_dit.denoiser), tiny_dit.denoiser)
    with pytest.raises(InputError, match="removes no block"):
        list_segments(pruned(tiny_dit.denoiser, 0, 1, 2, 3), tiny_dit.denoiser)
    with pytest.raises(InputError, match="UNet2DConditionModel is no diffusion transformer"):
        list_segments(tiny_teacher.denoiser, tiny_teacher.denoiser)


def test_a_step_is_the_segments_errors_and_trains_them_alone(tiny_dit, monkeypatch):
    """The student as a whole is not run; the loss is that of the one segment; its gradient reaches its block alone."""
    student = pruned(tiny_dit.denoiser, 2).train()
    module = DenoiserTraining(
        student,
        tiny_dit.scheduler,
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        scheduler("constant", 1, 0),
        seed=0,
        teacher=tiny_dit.denoiser,
        task_weight=0.0,
        local_weight=2.0,
    )
    monkeypatch.setattr(student, "forward", None)
    logged = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value}))
    monkeypatch.setattr(module, "log_dict", logged.update)
    generator = torch.Generator().manual_seed(0)
    batch = {
        "latents": torch.randn(3, 4, 8, 8, generator=generator),
        "position": torch.arange(3),
        "encoder_hidden_states": torch.randn(3, 6, 16, generator=generator),
        "encoder_attention_mask": torch.ones(3, 6),
    }
    loss = module.training_step(batch, 0)
    loss.backward()
    ours, theirs = module.unregistered["local"].pairs()
    assert loss.item() == pytest.approx(2 * (ours[0] - theirs[0]).square().mean().item(), rel=1e-5)
    assert set(logged) == {"loss", "loss/local", "share/local"} and logged["share/local"] == pytest.approx(1)
    reached = [name for name, weight in student.named_parameters() if weight.grad is not None]
    assert reached and all(name.startswith("transformer_blocks.1.") for name in reached)
    gradients = [weight.grad.clone() for weight in student.parameters() if weight.grad is not None]
    student.zero_grad()
    student.enable_gradient_checkpointing()
    module.training_step(batch, 0).backward()
    again = [weight.grad for weight in student.parameters() if weight.grad is not None]
    assert all(map(torch.equal, gradients, again))
    module.remove_hooks()
