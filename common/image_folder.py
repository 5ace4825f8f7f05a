"""A folder of images as a data set: CelebA-HQ, or any other pictures that Pillow reads."""

import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from common.data_folder import Images, check_limit, evenly_spaced
from common.errors import InputError
from common.progress import progress_bar

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
TEST_EVERY = 10


def load_image_folder(folder: str | Path | None, split: str, size: int = 256, limit: int | None = None) -> Images:
    """The images below `folder`, at most `limit` evenly spaced ones: the largest square in the middle, `size` pixels wide.

    split: "test" holds every tenth file by name, "train" the others. They are held in memory: 30,000 of 256 pixels are
    5.9 GB. Unreadable files are skipped and told in one line on standard error. InputError for a folder that does not
    exist, and for one without any image.
    """
    check_limit(limit, "image")
    if folder is None or not Path(folder).is_dir():
        raise InputError(f"task.data.folder={folder} is no folder; give one that holds images.")
    if split not in ("train", "test"):
        raise InputError(f"{folder} holds no image of split={split!r}; the splits are 'train' and 'test'.")
    if size < 8:
        raise InputError(f"task.data.size={size}: at least 8 pixels are needed.")
    return Images(read_folder(Path(folder), split, size, limit))


@lru_cache(maxsize=2)
def read_folder(folder: Path, split: str, size: int, limit: int | None) -> torch.Tensor:
    """uint8 (count, 3, size, size) of one split; read once, for a job asks more than once."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    if not files:
        raise InputError(f"{folder} holds no image ({', '.join(sorted(ENDINGS))}).")
    held_out = set(files[TEST_EVERY - 1 :: TEST_EVERY])
    wanted = evenly_spaced([path for path in files if (path in held_out) == (split == "test")], limit)
    images, skipped = np.empty((len(wanted), size, size, 3), np.uint8), []
    count = 0
    with progress_bar(f"reading {split} images", len(wanted)) as bar:
        for path in wanted:
            try:
                with Image.open(path) as picture:
                    square = ImageOps.fit(
                        ImageOps.exif_transpose(picture).convert("RGB"), (size, size), Image.Resampling.LANCZOS
                    )
                images[count] = np.asarray(square)
                count += 1
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's kinds of damage
                skipped.append(f"{path.relative_to(folder)}: {error}")
            bar.advance()
    if skipped:
        more = f", and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        print(
            f"{folder}: {len(skipped)} of {len(wanted)} files skipped, damaged ({'; '.join(skipped[:5])}{more})",
            file=sys.stderr,
        )
    if not count:
        raise InputError(
            f"{folder} holds no readable image of split={split!r}: of {len(files)} files {len(wanted)} belong to it."
        )
    return torch.from_numpy(images[:count]).permute(0, 3, 1, 2).contiguous()
