"""Images of models as pixels, and grids of them as PNG files."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1] to uint8 in [0, 255], same shape."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def with_channels(images: torch.Tensor, channels: int) -> torch.Tensor:
    """uint8 images (count, 1 or 3, height, width) with 1 or 3 channels: grey by luma (ITU-R 601), colour as equal channels."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    red, green, blue = images.int().unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16).to(torch.uint8)[:, None]  # as Pillow's mode "L"


def upright(images: torch.Tensor, sound: Any) -> torch.Tensor:
    """Spectrograms (count, 1, mels, frames) with the low notes below, other images as they are; `sound`: None for those."""
    return images if sound is None else images.flip(2)


def save_grid(images: torch.Tensor, path: Path, columns: int) -> None:
    """Images (count, 1 or 3, height, width) in [-1, 1], or uint8, in rows of `columns`, with a 2-pixel border."""
    pixels = images if images.dtype == torch.uint8 else to_uint8(images)
    count, channels, height, width = pixels.shape
    rows = -(-count // columns)
    sheet = torch.full((channels, rows * (height + 2), columns * (width + 2)), 255, dtype=torch.uint8)
    for position, image in enumerate(pixels):
        row, column = divmod(position, columns)
        top, left = row * (height + 2) + 1, column * (width + 2) + 1
        sheet[:, top : top + height, left : left + width] = image
    Image.fromarray(sheet.expand(3, -1, -1).permute(1, 2, 0).numpy()).save(path)
