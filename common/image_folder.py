"""A folder of images as a data set: CelebA-HQ, or any other pictures that Pillow reads."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from common.data_folder import Images, check_limit, evenly_spaced, files_of_split, tell
from common.errors import InputError
from common.progress import progress_bar

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


def load_image_folder(folder: str | Path | None, split: str, size: int = 256, limit: int | None = None) -> Images:
    """The images below `folder`, at most `limit` evenly spaced ones: the largest square in the middle, `size` pixels wide.

    split: "test" holds every tenth file by name, "train" the others. They are held in memory: 30,000 of 256 pixels are
    5.9 GB. Unreadable files are skipped and told in one line on standard error. InputError for a folder that does not
    exist, and for one without any image.
    """
    check_limit(limit, "image")
    files, total = files_of_split(folder, split, ENDINGS, "image")
    if size < 8:
        raise InputError(f"task.data.size={size}: at least 8 pixels are needed.")
    images = read_images(Path(folder), tuple(evenly_spaced(files, limit)), size, f"reading {split} images")
    if not len(images):
        raise InputError(f"{folder} holds no readable image of split={split!r}: of {total} files {len(files)} belong to it.")
    return Images(images)


@lru_cache(maxsize=2)
def read_images(folder: Path, wanted: tuple[Path, ...], size: int, description: str) -> torch.Tensor:
    """uint8 (count, 3, size, size) of the readable ones; read once, for a job asks more than once."""
    images, skipped = np.empty((len(wanted), size, size, 3), np.uint8), []
    count = 0
    with progress_bar(description, len(wanted)) as bar:
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
        tell(folder, wanted, "skipped, damaged", skipped)
    return torch.from_numpy(images[:count]).permute(0, 3, 1, 2).contiguous()
