"""Folders of images: squares of one size, splits by name, and what is wrong told in a line."""

import numpy as np
import pytest
import torch
from PIL import Image

from common.data.image_folder import load_image_folder
from common.errors import InputError


@pytest.fixture
def folder(tmp_path):
    for index in range(20):
        pixels = np.full((40, 60, 3), 10 * index, np.uint8)
        pixels[:, :6] = 255  # cut away: not in the middle square
        path = tmp_path / f"part{index % 2}" / f"{index:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path


def test_squares_and_splits(folder):
    train, test = load_image_folder(folder, "train", 32), load_image_folder(folder, "test", 32)
    assert train.images.shape == (18, 3, 32, 32) and train.images.dtype == torch.uint8 and len(test) == 2
    values = {int(image[0, 16, 16]) for image in (*train.images, *test.images)}
    assert values == {10 * index for index in range(20)}
    assert all(image.unique().numel() == 1 for image in train.images)  # the middle square alone
    limited = load_image_folder(folder, "train", 32, limit=6)
    assert torch.equal(limited.images[:], train.images[::3])


def test_damaged_files_are_counted_and_named(folder, capsys):
    path = folder / "part0" / "04.png"
    path.write_bytes(path.read_bytes()[:60])
    (folder / "part1" / "03.png").write_text("no picture")
    data = load_image_folder(folder, "train", 32)
    assert len(data) == 16
    values = {int(image[0, 16, 16]) for image in data.images}
    assert not values & {30, 40}
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "skipped" in line]
    assert "2 of 18 files" in line and "part0/04.png" in line and "part1/03.png" in line


def test_what_cannot_be_read_is_told(tmp_path):
    for arguments, expected in {
        (None, "train"): "task.data.folder=None is no folder",
        (tmp_path / "nowhere", "train"): "is no folder",
        (tmp_path, "train"): "holds no image",
        (tmp_path, "dev"): "the splits are 'train' and 'test'",
    }.items():
        with pytest.raises(InputError, match=expected):
            load_image_folder(*arguments)
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(InputError, match="no readable image"):
        load_image_folder(tmp_path, "train")
