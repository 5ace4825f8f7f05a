"""An image of any depth reads as the same image of 8 bits, or is skipped with the reason."""

import io

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from common.data.image_folder import load_image_folder
from common.data.lazy_images import open_picture

RAMP = np.tile(np.arange(256, dtype=np.uint8), (64, 1))


def saved(pixels, kind, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def twelve_bits(pixels):
    """A TIFF file of 12 bits a pixel, two pixels in three bytes, the high bits first."""
    values = pixels.astype(np.uint32).reshape(-1, 2) * 4095 // 255
    first, second = values[:, 0], values[:, 1]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes()
    entries = [
        (256, pixels.shape[1]),
        (257, pixels.shape[0]),
        (258, 12),
        (259, 1),
        (262, 1),
        (273, 8 + 2 + 9 * 12 + 4),
        (277, 1),
    ]
    entries += [(278, pixels.shape[0]), (279, len(packed))]
    head = b"II*\0" + (8).to_bytes(4, "little") + len(entries).to_bytes(2, "little")
    listed = b"".join(
        tag.to_bytes(2, "little") + (4).to_bytes(2, "little") + (1).to_bytes(4, "little") + value.to_bytes(4, "little")
        for tag, value in entries
    )
    return head + listed + bytes(4) + packed


def white_is_zero():
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[262] = 0
    return {"tiffinfo": tags}


DEEP = {
    "PNG of 16 bits": lambda: saved(RAMP.astype(np.uint16) * 257, "PNG"),
    "TIFF of 16 bits": lambda: saved(RAMP.astype(np.uint16) * 257, "TIFF"),
    "TIFF of 16 bits, the high one first": lambda: saved(RAMP.astype(">u2") * np.uint16(257), "TIFF"),
    "TIFF of 12 bits": lambda: twelve_bits(RAMP),
    "PGM of 16 bits": lambda: b"P5 256 64 65535\n" + (RAMP.astype(">u2") * 257).astype(">u2").tobytes(),
    "JPEG 2000 of 16 bits": lambda: saved(RAMP.astype(np.uint16) * 257, "JPEG2000"),
    "floats": lambda: saved(RAMP.astype(np.float32) / 255, "TIFF"),
    "8 bits": lambda: saved(RAMP, "PNG"),
}


@pytest.mark.parametrize("kind", DEEP)
def test_every_depth_reads_as_eight_bits(kind):
    found = np.asarray(open_picture(DEEP[kind]()))
    assert found.shape == (64, 256, 3) and np.abs(found - RAMP[..., None].astype(int)).max() <= (kind == "TIFF of 12 bits")


def test_white_is_zero():
    deep = open_picture(saved(RAMP.astype(np.uint16) * 257, "TIFF", **white_is_zero()))
    assert np.array_equal(np.asarray(deep)[..., 0], 255 - RAMP)


def test_a_deep_image_that_lies_on_its_side_is_turned():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = np.asarray(open_picture(saved(RAMP.astype(np.uint16) * 257, "PNG", exif=exif)))
    assert np.array_equal(turned[..., 0], np.rot90(RAMP, -1))


@pytest.mark.parametrize("mode", ["1", "LA", "RGBA", "P", "CMYK", "YCbCr"])
def test_other_modes_are_as_pillow_has_them(mode):
    picture = Image.fromarray(np.stack([RAMP, RAMP.T.repeat(4, 1)[:64], RAMP[:, ::-1]], 2)).convert(mode)
    file = io.BytesIO()
    picture.save(file, "TIFF" if mode in ("CMYK", "YCbCr") else "PNG", **({"transparency": 3} if mode == "P" else {}))
    assert np.array_equal(np.asarray(open_picture(file.getvalue())), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (RAMP.astype(np.float32), "its floats are not all from 0 to 1"),
        (np.where(RAMP == 7, np.float32(np.nan), np.float32(0.5)), "its floats are not all from 0 to 1"),
        (RAMP.astype(np.int32) * 257, "its integers have 32 bits and no stated range"),
    ],
)
def test_what_has_no_known_range_is_skipped_and_named(tmp_path, capsys, pixels, reason):
    (tmp_path / "deep.tif").write_bytes(saved(pixels, "TIFF"))
    (tmp_path / "fine.png").write_bytes(saved(RAMP, "PNG"))
    assert len(load_image_folder(tmp_path, "train", 16)) == 1
    assert f"1 of 2 files skipped, damaged (deep.tif: {reason}" in capsys.readouterr().err
