"""The Earth data set: 64 px tiles of NASA's Blue Marble, without captions (experiments/datasets/build_earth.py)."""

from pathlib import Path

import numpy as np
import torch

from common.data.splits import Images, evenly_spaced, read_picture, read_split_index
from common.errors import InputError
from common.settings import AtLeastOne

BUILT = "Earth", "experiments/datasets/build_earth.py"


def load_earth(folder: str | Path, split: str, limit: AtLeastOne | None = None, mirrored: bool = False) -> Images:
    """The tiles of one split ("train" or "test"), at most `limit` evenly spaced ones.

    mirrored: the training tiles a second time, east and west exchanged. `folder`: absolute, or relative to the working
    directory or the project.
    """
    folder, document = read_split_index(folder, *BUILT, ("tile", "picture", "splits"))
    if not document["splits"].get(split):
        raise InputError(f"{folder} holds no tile of split={split!r}; the splits are 'train' and 'test'.")
    size = document["tile"]
    pixels = read_picture(folder / document["picture"], "RGB", *BUILT)
    places = evenly_spaced(document["splits"][split], limit)
    tiles = np.stack([pixels[top : top + size, left : left + size] for left, top in places])
    images = torch.from_numpy(tiles).permute(0, 3, 1, 2).contiguous()
    if mirrored and split == "train":
        images = torch.cat([images, images.flip(3)])
    return Images(images)
