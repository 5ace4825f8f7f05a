"""Images through files, against Pillow and files on the disk."""

import numpy as np
import pytest
import torch
from PIL import Image

from common.metrics.jpeg_round_trip import through_files


def pictures(count=3, size=64):
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(count, 3, 8, 8, generator=generator), size, mode="bilinear")
    return (255 * smooth).to(torch.uint8)


def test_bk_sdm_s_files(tmp_path):
    """As its generate.py and change_img_size leave them, with Pillow's defaults: saved, opened, resized, saved, opened."""
    images = pictures()
    seen = through_files(images, {"quality": 75, "size": 32, "filter": "bicubic"})
    for place, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "a.jpg")
        Image.open(tmp_path / "a.jpg").resize((32, 32)).save(tmp_path / "b.jpg")
        expected = np.array(Image.open(tmp_path / "b.jpg").convert("RGB"))
        assert np.array_equal(seen[place].permute(1, 2, 0).numpy(), expected)


def test_without_a_size_they_are_saved_once_and_without_files_left_alone(tmp_path):
    images = pictures(1)
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(tmp_path / "a.jpg", quality=90)
    seen = through_files(images, {"quality": 90, "size": None, "filter": "bicubic"})
    assert np.array_equal(seen[0].permute(1, 2, 0).numpy(), np.array(Image.open(tmp_path / "a.jpg")))
    assert not torch.equal(seen, images) and through_files(images, None) is images


def test_spectrograms_are_refused():
    with pytest.raises(ValueError, match="in colour"):
        through_files(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), {"quality": 75, "size": None, "filter": "bicubic"})
