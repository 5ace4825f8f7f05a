"""Layer inventories and removable shares, exact on the meta device."""

import pytest
import torch
from diffusers import UNet2DConditionModel

from common.errors import InputError
from common.pruning.layers import layer_sizes, list_layers
from common.pruning.plan import Plan, apply_plan

SDXL = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@pytest.fixture(scope="module")
def sd15():
    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)


@pytest.fixture(scope="module")
def sdxl():
    with torch.device("meta"):
        return UNet2DConditionModel(**SDXL)


def millions(layers):
    return round(sum(layer.parameters for layer in layers) / 1e6, 2)


def test_sd15(sd15):
    layers = list_layers(sd15)
    assert len(layers) == 38
    assert [layer.kind for layer in layers].count("transformer") == 16
    assert millions(layers) == 781.65
    assert millions(list_layers(sd15, width_changing="keep")) == 435.64
    assert millions(layer for layer in layers if layer.edit.operation == "shortcut") == 346.01


def test_sdxl(sdxl):
    assert len(list_layers(sdxl)) == 28
    assert millions(list_layers(sdxl)) == 2523.68
    assert millions(list_layers(sdxl, width_changing="keep")) == 2315.32
    blocks = list_layers(sdxl, "transformer_block")
    assert len(blocks) == 87
    assert millions(layer for layer in blocks if layer.kind == "transformer") == 2185.40


def test_order_is_that_of_the_stages(sd15):
    stages = [layer.site.split(".")[0] for layer in list_layers(sd15)]
    assert list(dict.fromkeys(stages)) == ["down_blocks", "mid_block", "up_blocks"]


@pytest.mark.exhaustive
def test_parameters_are_what_the_student_loses(tiny_teacher):
    unet = tiny_teacher.denoiser
    whole = sum(p.numel() for p in unet.parameters())
    for layer in list_layers(unet):
        student = apply_plan(unet, Plan("test", (layer.edit,)))
        assert whole - sum(p.numel() for p in student.parameters()) == layer.parameters, layer.site


def test_bad_options_are_told(sd15):
    with pytest.raises(InputError, match="none of transformer, transformer_block"):
        list_layers(sd15, "block")
    with pytest.raises(InputError, match="none of shortcut, keep"):
        list_layers(sd15, width_changing="drop")
    with pytest.raises(InputError, match="'nothing' matches no layer"):
        list_layers(sd15, exclude=["nothing"])


def test_measured_times_are_kept_and_read_again(tiny_teacher, tmp_path):
    layers = list_layers(tiny_teacher.denoiser)
    first = layer_sizes(tiny_teacher.denoiser, layers, "milliseconds", tmp_path, "tiny")
    assert layer_sizes(tiny_teacher.denoiser, layers, "milliseconds", tmp_path, "tiny") == first
    assert len(list(tmp_path.glob("*-milliseconds.json"))) == 1
    layer_sizes(tiny_teacher.denoiser, layers[:3], "milliseconds", tmp_path, "tiny")  # fewer sites: measured anew, beside it
    assert layer_sizes(tiny_teacher.denoiser, layers, "milliseconds", tmp_path, "tiny") == first
    assert len(list(tmp_path.glob("*-milliseconds.json"))) == 2
