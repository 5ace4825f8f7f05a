"""Memory on the meta device against what PyTorch keeps and allocates for real tensors on the CPU."""

import copy

import pytest
import torch
from diffusers import UNet2DModel
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from common.cost.peak_memory import LikeCuda, LiveBytes, forward_bytes, step_bytes, tensors_of


def small_unet(**changes):
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        add_attention=False,
        norm_num_groups=4,
        **changes,
    )


def loss_of(network, device, batch=3):
    latents = torch.zeros(batch, 3, 16, 16, device=device)
    timesteps = torch.zeros(batch, dtype=torch.long, device=device)
    return lambda: F.mse_loss(network(latents, timesteps).sample, latents)


def saved_bytes(network, loss):
    """By PyTorch's own hooks, on real tensors: every storage that the backward pass will need, parameters left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in tensors_of(network)}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss()
    return sum(storage.nbytes() for storage in kept.values()), value


def live_after(network, loss, mixed=False):
    with LiveBytes(tensors_of(network)) as live:
        with LikeCuda(mixed):
            value = loss()
        return live.now - value.nbytes


def test_what_a_unet_keeps_for_its_backward_pass():
    network = small_unet()
    latents = torch.zeros(3, 3, 16, 16)  # an input: it is there before, and the hooks see it too
    found, _ = saved_bytes(network, loss_of(network, "cpu"))
    twin = copy.deepcopy(network).to("meta")
    assert live_after(twin, loss_of(twin, "meta")) == pytest.approx(found - latents.nbytes, abs=4096)
    assert found > 10 * latents.nbytes


def test_what_mixed_precision_keeps():
    """Autocast's copies of weights and inputs, against PyTorch's autocast for the CPU, which treats these layers alike."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 12 * 12, 4))
    images = torch.zeros(5, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = saved_bytes(network, lambda: network(images).sum())
    half_image = images.nbytes // 2  # the copy of the input is made inside, and counts in both
    twin, empty = copy.deepcopy(network).to("meta"), torch.empty_like(images, device="meta")
    assert live_after(twin, lambda: twin(empty).sum(), mixed=True) == pytest.approx(found, rel=0.02)
    assert found > half_image


def profiled_peak(work):
    """The most bytes that were allocated at once on the CPU during work(), by PyTorch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = sorted(
        (event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"),
        key=lambda event: event.start_ns(),
    )
    now = peak = 0
    for event in events:
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def test_the_peak_of_a_step_is_what_the_profiler_sees():
    network = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 8))
    rows = torch.zeros(512, 64)
    step_bytes(network, lambda: network(rows).square().mean(), False, False)  # what is allocated once and for all
    found = profiled_peak(lambda: step_bytes(network, lambda: network(rows).square().mean(), False, False))
    twin, empty = copy.deepcopy(network).to("meta"), torch.empty_like(rows, device="meta")
    assert step_bytes(twin, lambda: twin(empty).square().mean(), False, False) == pytest.approx(found, rel=0.02)


def test_gradient_checkpointing_keeps_less_and_leaves_the_network_as_it_was():
    network = small_unet(layers_per_block=4).to("meta").eval().requires_grad_(False)
    plain, again = (step_bytes(network, loss_of(network, "meta"), True, checkpointing) for checkpointing in (False, True))
    assert again < 0.7 * plain
    assert not network.training
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in network.parameters())
    assert not network.is_gradient_checkpointing


def test_activations_grow_with_the_batch():
    network = small_unet().to("meta")
    one, two, three = (step_bytes(network, loss_of(network, "meta", batch), False, False) for batch in (1, 2, 3))
    assert two - one == pytest.approx(three - two, rel=0.05)


def test_attention_takes_no_products():
    """A row of a fused attention holds its queries, keys, values and output, whatever the number of tokens."""
    query = torch.empty(2, 4, 1024, 8, device="meta")
    network = nn.Linear(1, 1, device="meta")
    found = forward_bytes(network, lambda: F.scaled_dot_product_attention(query, query, query))
    assert found < 3 * query.nbytes < 1024 * 1024 * 4
