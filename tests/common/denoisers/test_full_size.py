"""The field's diffusion transformers at full size, on the meta device: parameters, layers, and students of half the size.

The counts of parameters are those of the published weights.
"""

import diffusers
import pytest
import torch

from baselines.random_layers import RandomLayers
from common.cost.macs import count_parameters
from common.pruning.layers import list_layers
from common.pruning.plan import apply_plan

FLUX = {"patch_size": 1, "attention_head_dim": 128, "num_attention_heads": 24}
NETWORKS = {
    "FLUX.1-dev": {
        **FLUX,
        **{"in_channels": 64, "num_layers": 19, "num_single_layers": 38, "joint_attention_dim": 4096, "guidance_embeds": True},
        "pooled_projection_dim": 768,
    },
    "FLUX.2-klein-4B": {
        **FLUX,
        **{"in_channels": 128, "num_layers": 5, "num_single_layers": 20, "joint_attention_dim": 7680, "guidance_embeds": False},
    },
    "Qwen-Image": {
        **{"patch_size": 2, "in_channels": 64, "out_channels": 16, "num_layers": 60, "attention_head_dim": 128},
        **{"num_attention_heads": 24, "joint_attention_dim": 3584, "guidance_embeds": False, "axes_dims_rope": (16, 56, 56)},
    },
    "Sana-1.6B": {
        **{"in_channels": 32, "out_channels": 32, "num_attention_heads": 70, "attention_head_dim": 32, "num_layers": 20},
        **{"num_cross_attention_heads": 20, "cross_attention_head_dim": 112, "cross_attention_dim": 2240, "mlp_ratio": 2.5},
        **{"caption_channels": 2304, "sample_size": 32, "patch_size": 1},
    },
    "PixArt-Sigma": {
        **{
            "sample_size": 128,
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 28,
            "caption_channels": 4096,
        },
        **{"num_attention_heads": 16, "attention_head_dim": 72, "cross_attention_dim": 1152, "interpolation_scale": 2},
        "use_additional_conditions": False,
    },
    "SD3-medium": {
        **{"sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24},
        **{"attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536},
        **{"pooled_projection_dim": 2048, "pos_embed_max_size": 192},
    },
}
CLASSES = dict(zip(NETWORKS, ("Flux", "Flux2", "QwenImage", "Sana", "PixArt", "SD3"), strict=True))
COUNTS = {  # parameters; blocks and what is in them; halves and what is in them
    "FLUX.1-dev": (11_901_408_320, 57, 11_837_283_328, 57, 4_304_416_256),
    "FLUX.2-klein-4B": (3_875_544_576, 25, 3_680_509_440, 15, 1_226_836_480),
    "Qwen-Image": (20_430_401_088, 60, 20_389_877_760, 180, 13_592_893_440),
    "Sana-1.6B": (1_604_462_752, 20, 1_558_412_800, 60, 1_558_144_000),
    "PixArt-Sigma": (610_856_096, 28, 595_155_456, 84, 594_961_920),
    "SD3-medium": (2_028_328_000, 24, 2_008_851_456, 71, 1_338_375_168),
}


@pytest.fixture(scope="module", params=NETWORKS)
def named(request):
    with torch.device("meta"):
        return request.param, getattr(diffusers, f"{CLASSES[request.param]}Transformer2DModel")(**NETWORKS[request.param])


def test_inventories(named):
    name, network = named
    found = [count_parameters(network)]
    for granularity in ("transformer", "half_block"):
        layers = list_layers(network, granularity)
        found += [len(layers), sum(layer.parameters for layer in layers)]
    assert tuple(found) == COUNTS[name]


@pytest.mark.parametrize("ratio", [0.3, 0.5])
def test_students(named, ratio):
    _, network = named
    plan = RandomLayers(ratio, seed=0).forecast(network, None).plan
    left = count_parameters(apply_plan(network, plan)) / count_parameters(network)
    assert 1 - ratio - 0.06 < left <= 1 - ratio
