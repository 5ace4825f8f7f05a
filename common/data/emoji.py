"""The emoji data set: 64 px drawings in four styles with their names as captions (experiments/datasets/build_emoji.py)."""

from pathlib import Path

import numpy as np
import torch

from common.data.splits import CaptionedImages, evenly_spaced, read_picture, read_split_index
from common.errors import InputError
from common.settings import AtLeastOne

BUILT = "emoji", "experiments/datasets/build_emoji.py"


def load_emoji(
    folder: str | Path, split: str, without: tuple[str, ...] = (), limit: AtLeastOne | None = None
) -> CaptionedImages:
    """The drawings of one split ("train" or "test"), without some categories, of at most `limit` evenly spaced names.

    What ships has no drawings of Flags, People & Body and Symbols, which the teachers leave out: build_emoji adds them.
    `folder`: absolute, or relative to the working directory or the project.
    """
    folder, document = read_split_index(folder, *BUILT, ("tile", "columns", "styles", "categories", "entries"))
    for category in set(without).difference(document["categories"]):
        raise InputError(f"task.data.without: {category!r} is none of {', '.join(document['categories'])}.")
    size, columns = document["tile"], document["columns"]
    chosen = [
        (position, entry)
        for position, entry in enumerate(document["entries"])
        if entry["split"] == split and entry["category"] not in without
    ]
    if not chosen:
        raise InputError(f"{folder} holds no drawing of split={split!r}; the splits are 'train' and 'test'.")
    chosen = evenly_spaced(chosen, limit)
    tiles, captions, names, categories = [], [], [], []
    for style in document["styles"]:
        pixels = read_picture(folder / f"{style}.webp", "RGB", *BUILT)
        for position, entry in chosen:
            top, left = (size * index for index in divmod(position, columns))
            tiles.append(pixels[top : top + size, left : left + size])
            captions.append(f"{entry['name']}, {style} style")
            names.append(entry["name"])
            categories.append(entry["category"])
    images = torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).contiguous()
    return CaptionedImages(images, captions, names, categories)
