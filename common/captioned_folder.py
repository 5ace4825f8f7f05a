"""A folder of images with captions in metadata.csv or metadata.jsonl: BK-SDM's layout, and Hugging Face's imagefolder."""

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

from common.caption_files import read_metadata
from common.data_folder import (
    CaptionedImages,
    Files,
    check_count,
    check_folder,
    check_limit,
    evenly_spaced,
    split_rows,
    tell,
)
from common.errors import InputError
from common.lazy_images import LazyImages, Source, check_size, in_threads, resized_and_cropped
from common.readable import readable


@lru_cache(maxsize=4)  # a job asks more than once
def load_captioned_folder(
    folder: str | Path | None,
    split: str,
    size: int,
    interpolation: str,
    caption_column: str,
    test_folder: str | Path | None,
    limit: int | None,
    expected: int | None,
) -> CaptionedImages:
    """Images below `folder` and their captions, at most `limit` evenly spaced ones; shorter side resized, middle cropped.

    split: "test" is `test_folder` where one is given, else every tenth row of `folder`, and "train" the others. Rows whose
    file is missing or cannot be read are skipped; these, captions that are empty, and another number of rows than `expected`
    in `folder` are each told in one line on standard error. InputError for a folder without metadata or without any image.
    """
    check_limit(limit, "image")
    check_size(size, interpolation)
    apart = test_folder is not None and split == "test"
    where = test_folder if apart else folder
    check_folder(where, split, "captioned image", "test_folder" if apart else "folder")
    where = Path(where)
    names, captions = read_metadata(where, caption_column)
    if where == Path(folder or ""):
        check_count(where, len(names), expected, "captioned image")
    rows = range(len(names)) if test_folder is not None else split_rows(len(names), split)
    wanted = [int(row) for row in evenly_spaced(rows, limit)]
    sizes = list(in_threads(lambda row: size_or_none(where / names[row]), wanted, None))
    missing = [names[row] for row, found in zip(wanted, sizes, strict=True) if found is None]
    if missing:
        tell(where, wanted, "skipped, missing", missing)
    there = [row for row, found in zip(wanted, sizes, strict=True) if found is not None]
    source = Files(where, [names[row] for row in there], [found for found in sizes if found is not None])
    return captioned_images(source, [captions[row] for row in there], split, size, interpolation)


def size_or_none(path: Path) -> int | None:
    """A file's size in bytes; None when it is not there."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def captioned_images(source: Source, captions: Sequence[str], split: str, size: int, interpolation: str) -> CaptionedImages:
    """The readable images of `source` with their captions, of which empty ones are told on standard error."""
    images = readable_images(source, split, size, interpolation)
    chosen = [captions[row] for row in images.rows]
    empty = [source.name(row) for row, caption in zip(images.rows, chosen, strict=True) if not caption]
    if empty:
        tell(source.place, chosen, "are empty", empty, things="captions")
    return CaptionedImages(images, chosen)


def readable_images(source: Source, split: str, size: int, interpolation: str) -> LazyImages:
    """The readable images of `source`, shorter side resized and middle cropped; InputError when there is none."""
    rows = readable(source, range(len(source)), f"checking {split} images")
    if not len(rows):
        raise InputError(f"{source.place} holds no readable image of split={split!r}.")
    return LazyImages(source, rows, partial(resized_and_cropped, size=size, interpolation=interpolation), size)
