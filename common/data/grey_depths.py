"""Images of one number a pixel and more than 8 bits (16-bit PNG, float TIFF) as grey values, which Pillow only clips."""

import numpy as np
from PIL import Image

BITS, INVERTED = 258, 262  # TIFF's tags BitsPerSample and PhotometricInterpretation, which is 0 where 0 is white


def is_deep(picture: Image.Image) -> bool:
    """Whether its pixels are of Pillow's modes of more than 8 bits: "I;16" and its kin, "I" and "F"."""
    return picture.mode[0] in "IF"


def eight_bits(pixels: np.ndarray, picture: Image.Image) -> Image.Image:
    """Grey values of `pixels`, those of the opened `picture` or of it turned: full scale becomes 255.

    Full scale is the depth that the file states; of floats it is 1. ValueError for floats outside of [0, 1], and for integers
    of 32 bits, of which no file says how far they go.
    """
    tags = getattr(picture, "tag_v2", {})
    if picture.mode == "F":
        full = 1.0
        if not (np.isfinite(pixels).all() and pixels.min() >= -0.5 / 255 and pixels.max() <= 1 + 0.5 / 255):
            raise ValueError("its floats are not all from 0 to 1: scale them, or save 8 or 16 bits")
    elif picture.mode == "I" and picture.format not in ("PNG", "PPM"):  # Pillow's name for 16 bits of these
        raise ValueError("its integers have 32 bits and no stated range: save 8 or 16 bits")
    else:
        full = 2.0 ** tags.get(BITS, (16,))[0] - 1
    grey = np.clip(pixels.astype(np.float64) * (255 / full), 0, 255).round().astype(np.uint8)
    return Image.fromarray(255 - grey if tags.get(INVERTED) == 0 else grey)
