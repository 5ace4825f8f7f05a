"""Tiles of the Earth: what each split holds, and the one line that bad input gets."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from common.data.earth import load_earth
from common.runtime.files import ROOT

EARTH = ROOT / "data" / "earth"


@pytest.fixture
def globe(tmp_path):
    """A globe of 8 x 4 tiles of 4 px, each of one grey level; the last two columns are held out."""
    levels = np.arange(32, dtype=np.uint8).reshape(4, 8).repeat(4, 0).repeat(4, 1)
    levels[:, ::4] += 100  # the west edge of every tile
    Image.fromarray(np.stack([levels] * 3, -1)).save(tmp_path / "globe.png")
    places = {
        "train": [[4 * column, 4 * row] for row in range(4) for column in range(6)],
        "test": [[4 * column, 4 * row] for row in range(4) for column in (6, 7)],
    }
    (tmp_path / "index.json").write_text(json.dumps({"tile": 4, "picture": "globe.png", "splits": places}))
    return tmp_path


def test_tiles_are_cut_where_the_index_says(globe):
    test = load_earth(globe, "test")
    assert len(test) == 8 and test.images.shape == (8, 3, 4, 4) and test.images.dtype == torch.uint8
    assert test.images[:, 0, 0, 1].tolist() == [6, 7, 14, 15, 22, 23, 30, 31]
    assert load_earth(globe, "train", limit=4).images[:, 0, 0, 1].tolist() == [0, 8, 16, 24]


def test_mirrored_adds_the_training_tiles_turned_around(globe):
    once, twice = load_earth(globe, "train"), load_earth(globe, "train", mirrored=True)
    assert len(twice) == 2 * len(once)
    assert torch.equal(twice.images[len(once) :], once.images.flip(3)) and not torch.equal(once.images, once.images.flip(3))
    assert torch.equal(load_earth(globe, "test", mirrored=True).images, load_earth(globe, "test").images)


def test_no_pixel_of_the_shipped_data_is_in_both_splits():
    document = json.loads((EARTH / "index.json").read_text())
    with Image.open(EARTH / document["picture"]) as picture:
        seen = {split: np.zeros((picture.height, picture.width), bool) for split in document["splits"]}
    for split, places in document["splits"].items():
        for left, top in places:
            tile = seen[split][top : top + document["tile"], left : left + document["tile"]]
            assert tile.shape == (64, 64)
            tile[:] = True
    assert not (seen["train"] & seen["test"]).any()


def test_the_shipped_tiles():
    train, test = load_earth("data/earth", "train", limit=300), load_earth("data/earth", "test")
    assert len(train) == 300 and len(test) > 500 and test.images.shape[1:] == (3, 64, 64)
    plain = (test.images.float().std((2, 3)).mean(1) < 12).float().mean()
    assert plain < 0.1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"folder": "/nowhere", "split": "train"}, "/nowhere has no index.json; build the Earth data"),
        ({"split": "dev"}, "no tile of split='dev'; the splits are 'train' and 'test'"),
    ],
)
def test_bad_input(globe, arguments, expected):
    with pytest.raises(ValueError, match=expected) as caught:
        load_earth(**{"folder": globe, **arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("index.json", b'{"tile": 4, "spl', "index.json is damaged"),
        ("index.json", b"\xff\xfe\x00", "index.json is damaged"),
        ("index.json", b'{"tile": 4}', "it lacks picture, splits"),
        ("globe.png", b"not a picture", "globe.png cannot be read"),
        ("globe.png", None, "globe.png cannot be read"),
    ],
)
def test_damaged_files_are_named(globe, name, content, expected):
    (globe / name).unlink()
    if content is not None:
        (globe / name).write_bytes(content)
    with pytest.raises(ValueError, match=expected) as caught:
        load_earth(globe, "train")
    assert "\n" not in str(caught.value)
