"""The music data set: log-mel spectrograms of Bach's chorales on four instruments (experiments/datasets/build_music.py)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common.audio.spectrogram import Spectrogram
from common.data.splits import evenly_spaced, read_picture, read_split_index
from common.errors import InputError
from common.settings import AtLeastOne

BUILT = "music", "experiments/datasets/build_music.py"


@dataclass(frozen=True)
class Clips:
    """Clips held in memory as spectrograms: uint8 tensor (count, 1, mels, frames), and what each is cut from."""

    images: torch.Tensor
    pieces: list[str]
    instruments: list[str]

    def __len__(self) -> int:
        return len(self.images)


def load_music(folder: str | Path, split: str, limit: AtLeastOne | None = None, sound: Spectrogram | None = None) -> Clips:
    """The clips of one split ("train" or "test", by piece), at most `limit` evenly spaced ones.

    sound: what the spectrograms must have been made with, where that matters; InputError for others.
    `folder`: absolute, or relative to the working directory or the project.
    """
    keys = ("columns", "picture", "spectrogram", "entries")
    folder, document = read_split_index(folder, *BUILT, keys)
    columns = document["columns"]
    made = Spectrogram(**document["spectrogram"])
    if sound is not None and sound != made:
        raise InputError(
            f"{folder} holds spectrograms of {made}, the teacher's are of {sound}: give task.data of the teacher's."
        )
    clips = [entry for entry in document["entries"] for _ in range(entry["clips"])]
    places = [(place, entry) for place, entry in enumerate(clips) if entry["split"] == split]
    if not places:
        raise InputError(f"{folder} holds no clip of split={split!r}; the splits are 'train' and 'test'.")
    pixels = read_picture(folder / document["picture"], "L", *BUILT)
    chosen = evenly_spaced(places, limit)
    corners = [divmod(place, columns) for place, _ in chosen]
    tiles = [pixels[row * made.mels :, column * made.frames :][: made.mels, : made.frames] for row, column in corners]
    pieces, instruments = ([entry[name] for _, entry in chosen] for name in ("piece", "instrument"))
    return Clips(torch.from_numpy(np.stack(tiles))[:, None], pieces, instruments)
