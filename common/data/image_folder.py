"""A folder of images as a data set: CelebA-HQ, or any other pictures that Pillow reads."""

from pathlib import Path

from common.data.image_check import readable_images
from common.data.splits import Files, Images, check_count, evenly_spaced, files_of_split
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
    return Images(readable_images(source, split, size, None, width))
