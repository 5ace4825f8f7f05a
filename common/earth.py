"""The Earth data set: 64 px tiles of NASA's Blue Marble, without captions (built by experiments/build_earth.py)."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common.data_folder import Images, check_limit, evenly_spaced, read_index
from common.errors import InputError


def load_earth(folder: str | Path, split: str, limit: int | None = None, mirrored: bool = False) -> Images:
    """The tiles of one split ("train" or "test"), at most `limit` evenly spaced ones.

    mirrored: the training tiles a second time, east and west exchanged. `folder`: absolute, or relative to the working
    directory or the project.
    """
    check_limit(limit, "tile")
    folder, document = read_index(folder, "Earth", "experiments/build_earth.py", ("tile", "picture", "splits"))
    if not document["splits"].get(split):
        raise InputError(f"{folder} holds no tile of split={split!r}; the splits are 'train' and 'test'.")
    size, path = document["tile"], folder / document["picture"]
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}); build the Earth data with experiments/build_earth.py.") from error
    places = evenly_spaced(document["splits"][split], limit)
    tiles = np.stack([pixels[top : top + size, left : left + size] for left, top in places])
    images = torch.from_numpy(tiles).permute(0, 3, 1, 2).contiguous()
    if mirrored and split == "train":
        images = torch.cat([images, images.flip(3)])
    return Images(images)
