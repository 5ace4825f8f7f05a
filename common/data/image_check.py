"""The images of a source that can be read, with their captions: each is decoded once, and what was found is remembered."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from PIL import Image

from common.data.lazy_images import DAMAGE, LazyImages, Source, middle_square, open_picture, resized_and_cropped
from common.data.splits import CaptionedImages, tell
from common.errors import InputError
from common.runtime.content import content_name
from common.runtime.files import remember, remembered, user_cache
from common.runtime.progress import progress_bar
from common.runtime.threads import in_threads

UNREAD = "not to be had"  # a lost connection or a missing permission: not damage, and perhaps gone next time


def readable(source: Source, wanted: Sequence[int], description: str) -> np.ndarray:
    """The wanted rows of `source` whose images can be decoded; the others are told in one line on standard error.

    Every image is decoded once; what was found is kept in common.runtime.files.user_cache() under the content of the source,
    unless the system refused one of the files.
    """
    wanted = np.asarray(wanted, np.int64)
    kept = user_cache() / "readable" / f"{content_name(source.content, wanted.tolist())}.json"
    damaged = remembered(kept)
    if damaged is None:
        damaged = {}
        with progress_bar(description, len(wanted)) as bar:
            for row, error in zip(wanted.tolist(), in_threads(partial(_damage, source), wanted.tolist(), None), strict=True):
                bar.advance()
                if error is not None:
                    damaged[row] = error
        if not any(error.startswith(UNREAD) for error in damaged.values()):
            remember(kept, damaged)
    if damaged:
        damaged = {int(row): error for row, error in damaged.items()}
        names = [f"{source.name(row)}: {error}" for row, error in damaged.items()]
        tell(source.place, wanted, "skipped, damaged", names)
    return wanted[~np.isin(wanted, list(damaged))]


def _damage(source: Source, row: int) -> str | None:
    """What is wrong with an image, in a few words; None for a good one."""
    try:
        open_picture(source.read(row))
    except Image.UnidentifiedImageError:
        return "not an image"
    except DAMAGE as error:
        return f"{UNREAD}: {error.strerror}" if getattr(error, "errno", None) else str(error)
    return None


def captioned_images(
    source: Source, captions: Sequence[str], split: str, size: int, interpolation: str, width: int | None
) -> CaptionedImages:
    """The readable images of `source` with their captions, of which empty ones are told on standard error."""
    images = readable_images(source, split, size, interpolation, width)
    chosen = [captions[row] for row in images.rows]
    empty = [source.name(row) for row, caption in zip(images.rows, chosen, strict=True) if not caption]
    if empty:
        tell(source.place, chosen, "are empty", empty, things="captions")
    return CaptionedImages(images, chosen)


def readable_images(source: Source, split: str, size: int, interpolation: str | None, width: int | None) -> LazyImages:
    """The readable images of `source`, shorter side resized and middle cropped, or without an interpolation the largest part
    in the middle; InputError when there is none.
    """
    rows = readable(source, range(len(source)), f"checking {split} images")
    if not len(rows):
        raise InputError(f"{source.place} holds no readable image of split={split!r}.")
    square = partial(middle_square, size=size, width=width)
    if interpolation is not None:
        square = partial(resized_and_cropped, size=size, interpolation=interpolation, width=width)
    return LazyImages(source, rows, square, size, width=width)
