"""Images as a published evaluation had them on disk: JPEG files, resized."""

import io
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image

from common.errors import InputError


def through_files(images: torch.Tensor, saved: Mapping[str, Any] | None) -> torch.Tensor:
    """uint8 (count, 3, height, width) as they come back from the files that `saved` describes; None: as they are.

    saved: `quality` of the JPEG files (Pillow's scale), `size` in pixels to which they are resized by Pillow's `filter`
    ("bicubic", ...) and saved once more at the same quality; without size they are saved once.
    """
    if saved is None:
        return images
    if images.shape[1] != 3:
        raise InputError(f"saved_images: {images.shape[1]} channels; JPEG files are of images in colour.")
    arrays = list(images.permute(0, 2, 3, 1).contiguous().numpy())
    with ThreadPoolExecutor() as pool:  # Pillow lets other threads run while it encodes
        finished = list(pool.map(lambda array: through_file(array, **saved), arrays))
    return torch.from_numpy(np.stack(finished)).permute(0, 3, 1, 2).contiguous()


def through_file(image: np.ndarray, quality: int, size: int | None, filter: str) -> np.ndarray:
    """One image (height, width, 3), saved and read again."""
    picture = reread(Image.fromarray(image), quality)
    if size is not None:
        picture = reread(picture.resize((size, size), Image.Resampling[filter.upper()]), quality)
    return np.asarray(picture)


def reread(picture: Image.Image, quality: int) -> Image.Image:
    """What a JPEG file of the picture holds."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(io.BytesIO(file.getvalue())).convert("RGB")
