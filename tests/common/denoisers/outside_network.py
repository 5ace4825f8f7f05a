"""A small transformer of two streams as somebody else would write it, for tests/common/denoisers/test_outside.py."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn


class OutsideBlock(nn.Module):
    """Text is read by the image; both go on."""

    def __init__(self, width: int):
        super().__init__()
        self.read, self.mix = nn.MultiheadAttention(width, 2, batch_first=True), nn.Linear(width, width)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x + self.read(x, context, context, need_weights=False)[0]
        return x, context + self.mix(context)


class OutsideTransformer2DModel(ModelMixin, ConfigMixin):
    """Latents of 4 channels, a token a place."""

    @register_to_config
    def __init__(self, in_channels: int = 4, sample_size: int = 8, text_width: int = 6, width: int = 8, depth: int = 3):
        super().__init__()
        self.first, self.text = nn.Linear(in_channels, width), nn.Linear(text_width, width)
        self.time, self.last = nn.Linear(1, width), nn.Linear(width, in_channels)
        self.blocks = nn.ModuleList(OutsideBlock(width) for _ in range(depth))

    def forward(
        self, image: torch.Tensor, time: torch.Tensor, text: torch.Tensor, return_dict: bool = True
    ) -> tuple[torch.Tensor]:
        x = self.first(image.flatten(2).transpose(1, 2)) + self.time(time.to(image)[:, None])[:, None]
        context = self.text(text)
        for block in self.blocks:
            x, context = block(x=x, context=context)
        return (self.last(x + context.mean(1, keepdim=True)).transpose(1, 2).reshape(image.shape),)
