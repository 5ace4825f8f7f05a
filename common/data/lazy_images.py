"""Images that are read when they are asked for: what memory cannot hold stands in for a uint8 tensor."""

import io
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps

from common.data.grey_depths import eight_bits, is_deep
from common.errors import InputError
from common.runtime.threads import cores, in_threads

Square = Callable[[Image.Image], Image.Image]
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)  # Pillow's kinds of it
Interpolation = Literal["bilinear", "bicubic", "lanczos"]
INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class Source(Protocol):
    """Encoded images. place: where they are, for messages; content: a short name that changes with what they hold."""

    place: str
    content: str

    def __len__(self) -> int: ...

    def name(self, row: int) -> str:
        """What to call the image in a message."""

    def read(self, row: int) -> bytes:
        """Its file's bytes."""


def open_picture(content: bytes) -> Image.Image:
    """The RGB image in a file's bytes, the right way up; one of DAMAGE when it cannot be read to its end."""
    with Image.open(io.BytesIO(content)) as picture:
        upright = ImageOps.exif_transpose(picture)
        return (eight_bits(np.asarray(upright), picture) if is_deep(picture) else upright).convert("RGB")


def middle_square(picture: Image.Image, size: int, width: int | None = None) -> Image.Image:
    """The largest square in the middle, `size` pixels wide; with a width, the largest part as high and wide as that."""
    return ImageOps.fit(picture, (width or size, size), Image.Resampling.LANCZOS)


def resized_and_cropped(picture: Image.Image, size: int, interpolation: str, width: int | None = None) -> Image.Image:
    """The shorter side resized to `size`, then the middle cropped: torchvision's Resize and CenterCrop, as in BK-SDM's code.

    With a width, resized so that size x width pixels (height x width) are just covered. Only the pixels that are kept are
    computed, so that a very long image costs no more than another.
    """
    wanted = (width or size, size)
    kept, whole = max(zip(wanted, picture.size, strict=True), key=lambda pair: pair[0] / pair[1])  # the side that fits exactly
    box = []
    for part, length in zip(wanted, picture.size, strict=True):
        resized = kept * length // whole
        start = round((resized - part) / 2.0) * length / resized
        box.append((start, start + part * length / resized))
    (left, right), (top, bottom) = box
    inside = (left, top, min(right, picture.width), min(bottom, picture.height))
    return picture.resize(wanted, INTERPOLATIONS[interpolation], box=inside)


class LazyImages:
    """Stands in for a uint8 tensor (count, 3, size, width): an index reads, decodes and crops the images that it names.

    rows: those of `source`, in order, all readable (see `readable`). square: makes size x width pixels of a picture.
    workers: threads that decode; None for one a core. width: None for squares.
    """

    dtype = torch.uint8

    def __init__(
        self,
        source: Source,
        rows: Sequence[int],
        square: Square,
        size: int,
        workers: int | None = None,
        width: int | None = None,
    ):
        self.source, self.square, self.size, self.workers, self.width = source, square, size, workers, width or size
        self.rows = np.asarray(rows, np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.rows), 3, self.size, self.width))

    def numel(self) -> int:
        return self.shape.numel()

    def select(self, chosen: Any, workers: int | None = None) -> "LazyImages":
        """The chosen images (indices or a slice), none of them read yet."""
        chosen = chosen if isinstance(chosen, slice) else np.asarray(chosen, np.int64)
        return LazyImages(self.source, self.rows[chosen], self.square, self.size, workers or self.workers, self.width)

    def __getitem__(self, chosen: Any) -> torch.Tensor:
        """(3, size, width) of an integer, else (chosen, 3, size, width)."""
        if isinstance(chosen, int | np.integer):
            return torch.from_numpy(self._pixels(int(self.rows[chosen]))).permute(2, 0, 1).contiguous()
        rows = self.select(chosen).rows.tolist()
        pixels = np.empty((len(rows), self.size, self.width, 3), np.uint8)
        for place, square in enumerate(in_threads(self._pixels, rows, min(self.workers or cores(), max(1, len(rows))))):
            pixels[place] = square
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()

    def split(self, batch_size: int) -> Iterator[torch.Tensor]:
        """The images in batches; the next is read while one is worked on."""
        starts = range(0, max(1, len(self)), batch_size)
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(self.__getitem__, slice(0, batch_size))
            for start in starts[1:]:
                batch = coming.result()
                coming = ahead.submit(self.__getitem__, slice(start, start + batch_size))
                yield batch
            yield coming.result()

    def _pixels(self, row: int) -> np.ndarray:
        try:
            return np.array(self.square(open_picture(self.source.read(row))))
        except DAMAGE as error:
            where = f"{self.source.place}: {self.source.name(row)}"
            raise InputError(f"{where} could be read before and cannot now ({error}); put it back, or start again.") from error


def subset(images: Any, chosen: Any, workers: int | None = None) -> Any:
    """images[chosen] of a tensor; of images that are read when asked for, the chosen ones, none of them read yet."""
    return images[chosen] if isinstance(images, torch.Tensor) else images.select(chosen, workers)
