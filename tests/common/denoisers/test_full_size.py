"""The field's diffusion transformers at full size, on the meta device: parameters, layers, and students of half the size.

The counts of parameters are those of the published weights.
"""

import pytest
import torch

from baselines.random_layers import RandomLayers
from common.cost.macs import count_parameters
from common.models.architectures import architecture, build
from common.pruning.layers import list_layers
from common.pruning.plan import apply_plan

COUNTS = {  # parameters; blocks and what is in them; halves and what is in them
    "flux1_dev": (11_901_408_320, 57, 11_837_283_328, 57, 4_304_416_256),
    "flux2_klein_4b": (3_875_544_576, 25, 3_680_509_440, 15, 1_226_836_480),
    "qwen_image": (20_430_401_088, 60, 20_389_877_760, 180, 13_592_893_440),
    "sana_1600m": (1_604_462_752, 20, 1_558_412_800, 60, 1_558_144_000),
    "pixart_sigma": (610_856_096, 28, 595_155_456, 84, 594_961_920),
    "sd3_medium": (2_028_328_000, 24, 2_008_851_456, 71, 1_338_375_168),
}


@pytest.fixture(scope="module", params=COUNTS)
def named(request):
    with torch.device("meta"):
        return request.param, build(architecture(request.param)["parts"]["transformer"])


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
