"""The smallest U-Nets with the edits that each method makes, and random inputs for them."""

import logging
from pathlib import Path

import numpy
import pytest
import torch

from baselines.bk_sdm_table import plan_for
from baselines.diff_pruning import DiffPruning
from common.models.latent_diffusion import LatentDiffusion
from common.pruning.plan import Edit, Plan
from ld_pruner.initial_weights import initial_weights
from ld_pruner.operators import list_operators

DIFF_PRUNING = DiffPruning(
    ratio=0.5, parameters=None, rounding="down", variant="magnitude", threshold=0.05, every=1, rows=1, exclude=(), seed=0
)
LD_PRUNER = (
    "down_blocks.0.attentions.0",
    "down_blocks.1.resnets.0",
    "down_blocks.0.downsamplers.0",
    "up_blocks.0.upsamplers.0",
)


@pytest.fixture(autouse=True, scope="module")
def untraced():
    """Without what torch.export writes for its own debugger as soon as any handler would listen, as pytest's does."""
    trace = logging.getLogger("torch.__trace")
    before, trace.propagate = trace.propagate, False
    yield
    trace.propagate = before


def small_unet(task="t2i", layers=1):
    """Two levels; with text, or without."""
    from diffusers import UNet2DConditionModel, UNet2DModel

    torch.manual_seed(0)
    shared = {"sample_size": 4, "block_out_channels": (8, 16), "layers_per_block": layers, "norm_num_groups": 4}
    if task == "uig":
        blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
        return UNet2DModel(in_channels=3, out_channels=3, attention_head_dim=4, **blocks, **shared).eval()
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    text = {"cross_attention_dim": 16, "attention_head_dim": 2, "mid_block_type": None}
    return UNet2DConditionModel(in_channels=4, out_channels=4, **text, **blocks, **shared).eval()


def plan_of(kind, unet):
    """A plan with the edits that a method makes."""
    operators = {operator.site: operator for operator in list_operators(unet)}
    if kind == "ld_pruner":
        chosen = [operators[site] for site in LD_PRUNER]
        edits = [*(operator.edit for operator in chosen), Edit("up_blocks.1.attentions.0.transformer_blocks.0.attn2", "zero")]
        return Plan(kind, tuple(edits), tensors=initial_weights(unet, chosen, "random", None, seed=0))
    if kind == "laptop_diff":
        return Plan(kind, (Edit("up_blocks.0.resnets.0", "shortcut"), Edit("up_blocks.1.attentions.1", "identity")))
    if kind == "bk_sdm":
        return plan_for(unet, "base")
    if kind == "diff_pruning":
        return DIFF_PRUNING.plan(unet, None, "", None)
    sites = ["conv_in", "down_blocks.1.resnets.0.conv1"]
    generator = torch.Generator().manual_seed(1)
    masks = {site: torch.rand(unet.get_submodule(site).weight.shape, generator=generator) > 0.7 for site in sites}
    edits = tuple(Edit(site, "mask") for site in sites)
    return Plan(kind, edits, tensors={f"{site}.mask": mask for site, mask in masks.items()})


def numbers(unet, batch, height, width, tokens=5):
    """Random inputs of a denoiser by name, as NumPy arrays."""
    generator = numpy.random.default_rng(batch)
    found = {
        "sample": generator.standard_normal((batch, unet.config.in_channels, height, width), dtype=numpy.float32),
        "timestep": generator.integers(0, 1000, batch),
    }
    if "cross_attention_dim" in unet.config:
        width = unet.config.cross_attention_dim
        found["encoder_hidden_states"] = generator.standard_normal((batch, tokens, width), dtype=numpy.float32)
    return found


def expected(unet, inputs):
    with torch.no_grad():
        return unet(**{name: torch.from_numpy(value) for name, value in inputs.items()}).sample.numpy()


def as_teacher(unet, autoencoder=None):
    return LatentDiffusion("small", Path(), unet, autoencoder, None)
