"""Images of a source (common.data.lazy_images.Source) as a data set: those that can be read, with their captions."""

from collections.abc import Sequence
from functools import partial

from common.data.image_check import readable
from common.data.lazy_images import LazyImages, Source, resized_and_cropped
from common.data.splits import CaptionedImages, tell
from common.errors import InputError


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


def readable_images(source: Source, split: str, size: int, interpolation: str, width: int | None) -> LazyImages:
    """The readable images of `source`, shorter side resized and middle cropped; InputError when there is none."""
    rows = readable(source, range(len(source)), f"checking {split} images")
    if not len(rows):
        raise InputError(f"{source.place} holds no readable image of split={split!r}.")
    square = partial(resized_and_cropped, size=size, interpolation=interpolation, width=width)
    return LazyImages(source, rows, square, size, width=width)
