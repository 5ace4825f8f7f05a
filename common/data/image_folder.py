"""A folder of images as a data set: CelebA-HQ, or any other pictures that Pillow reads."""

from functools import partial
from pathlib import Path

from common.data.image_check import readable
from common.data.lazy_images import LazyImages, middle_square
from common.data.splits import Files, Images, check_count, evenly_spaced, files_of_split
from common.errors import InputError
from common.runtime.content import while_unchanged
from common.settings import AtLeastOne, Count, ImageSize

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


@while_unchanged  # a job asks more than once
def load_image_folder(
    folder: str | Path | None,
    split: str,
    size: ImageSize = 256,
    limit: AtLeastOne | None = None,
    expected: Count | None = None,
    width: ImageSize | None = None,
) -> Images:
    """The images below `folder`, at most `limit` evenly spaced ones: the largest square in the middle, `size` pixels wide.

    split: "test" holds every tenth file by name, "train" the others. They are read when they are asked for. Unreadable files
    are skipped and told in one line on standard error, and so is another number of files than `expected`. InputError for a
    folder that does not exist, and for one without any image.
    """
    files, total = files_of_split(folder, split, ENDINGS, "image")
    check_count(folder, total, expected, "image")
    wanted = evenly_spaced(files, limit)
    source = Files(folder, [str(path.relative_to(folder)) for path in wanted])
    rows = readable(source, range(len(source)), f"checking {split} images")
    if not len(rows):
        raise InputError(f"{folder} holds no readable image of split={split!r}: of {total} files {len(files)} belong to it.")
    return Images(LazyImages(source, rows, partial(middle_square, size=size, width=width), size, width=width))
