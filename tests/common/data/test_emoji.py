"""The shipped drawings: how many, of what, and what may be left out."""

import pytest

from common.data.emoji import load_emoji
from common.errors import InputError


def test_the_shipped_drawings():
    train, test = (load_emoji("data/emoji", split) for split in ("train", "test"))
    assert (len(train.images), len(test.images)) == (4 * 908, 4 * 107)
    assert train.images.shape[1:] == (3, 64, 64) and not set(train.captions) & set(test.captions)
    assert "a red apple, noto style" in train.captions


def test_categories():
    """Those that the sheets could hold may be left out, whether they hold them or not."""
    everything = load_emoji("data/emoji", "test")
    assert load_emoji("data/emoji", "test", without=("Flags", "Symbols")).captions == everything.captions
    fewer = load_emoji("data/emoji", "test", without=("Food & Drink",))
    assert len(everything.images) - len(fewer.images) == 4 * 14
    with pytest.raises(InputError, match="'Cars' is none of Activities, Animals & Nature"):
        load_emoji("data/emoji", "test", without=("Cars",))
