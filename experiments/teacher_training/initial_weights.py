"""The weights that a teacher's denoiser starts from, so that none of its levels is silent at the start."""

import math

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import nn


@torch.no_grad()
def rescale_initial_weights(unet: nn.Module, gain: float, skips: float) -> None:
    """Scales PyTorch's default weights of a U-Net of diffusers, in place; its architecture stays what it is.

    gain: of all convolutions and linear maps. PyTorch draws weights of variance 1 / (3 fan_in), by which each shortcut and
    sampler of the up path, which no norm follows, passes a third of the power on: what the middle block says reaches the
    output ten factors weaker. gain = sqrt(3) gives variance 1 / fan_in.
    skips: of the columns that read skip connections in the up blocks (`conv1`, `conv_shortcut`). The shortcut's columns of the
    trunk get sqrt(2 - skips^2), so that the sum of both keeps its power: the output then hangs on the inner levels.
    """
    for module in unet.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight *= gain
    width = unet.mid_block.resnets[-1].out_channels
    for block in unet.up_blocks:
        for resnet in block.resnets:
            assert isinstance(resnet, ResnetBlock2D) and resnet.in_channels > width
            resnet.conv1.weight[:, width:] *= skips
            resnet.conv_shortcut.weight[:, width:] *= skips
            resnet.conv_shortcut.weight[:, :width] *= math.sqrt(2 - skips**2)
            width = resnet.out_channels
