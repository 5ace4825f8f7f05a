"""The chorales: what each split holds, and the one line that bad input gets."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from common.data.music import load_music
from common.errors import InputError
from common.runtime.files import ROOT
from tests.common.audio.test_spectrogram import SOUND

MUSIC = ROOT / "data" / "music"


def test_no_piece_is_in_both_splits():
    train, test = load_music(MUSIC, "train"), load_music("data/music", "test", sound=SOUND)
    assert len(train) > 6000 and len(test) > 500 and train.images.shape[1:] == (1, 64, 64)
    assert train.images.dtype == torch.uint8 and not set(train.pieces) & set(test.pieces)
    assert set(train.instruments) == set(test.instruments) and len(set(train.instruments)) == 4
    assert train.images.flatten(1).amax(1).min() > 200  # a clip's loudest place is white, but for what WebP loses


def test_a_limit_takes_evenly_spaced_clips():
    some, every = load_music(MUSIC, "test", limit=5), load_music(MUSIC, "test")
    assert torch.equal(some.images[2], every.images[2 * len(every) // 5])
    assert some.pieces[2] == every.pieces[2 * len(every) // 5]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"folder": "/nowhere", "split": "train"}, "/nowhere has no index.json; build the music data"),
        ({"split": "dev"}, "no clip of split='dev'; the splits are 'train' and 'test'"),
        ({"split": "train", "sound": replace(SOUND, mels=256)}, "give task.data of the teacher's"),
    ],
)
def test_bad_input(arguments, expected):
    with pytest.raises(InputError, match=expected) as caught:
        load_music(**{"folder": MUSIC, **arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("index.json", b'{"columns": 96, "spl', "index.json is damaged"),
        ("index.json", json.dumps({"columns": 96, "picture": "clips.webp"}).encode(), "it lacks spectrogram, entries"),
        ("clips.webp", b"not a picture", "clips.webp cannot be read"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, expected):
    shutil.copytree(MUSIC, tmp_path / "music")
    (tmp_path / "music" / name).write_bytes(content)
    with pytest.raises(InputError, match=expected) as caught:
        load_music(tmp_path / "music", "train")
    assert "\n" not in str(caught.value)
