"""The settings of AudioDiffusion's spectrograms, as diffusers keeps them in a pipeline's mel/mel_config.json."""

from pathlib import Path

from common.audio.spectrogram import Spectrogram
from common.errors import InputError
from common.models.honoured_settings import config_file
from common.runtime.strict_json import read_json
from common.settings import is_finite_number

FIELDS = {  # of Spectrogram: diffusers' names, and what its Mel takes where they are left out
    "sample_rate": ("sample_rate", 22050),
    "fft_size": ("n_fft", 2048),
    "hop": ("hop_length", 512),
    "mels": ("y_res", 256),
    "frames": ("x_res", 256),
    "range_db": ("top_db", 80),
}


def read_mel(folder: Path) -> Spectrogram | None:
    """The spectrograms that a pipeline folder says its images are; None where it says nothing.

    InputError for impossible ones.
    """
    path = config_file(folder, "mel")
    if not path.is_file():
        return None
    written = read_json(path)
    found = {}
    for field, (name, usual) in FIELDS.items():
        found[field] = value = written.get(name, usual)
        whole = field == "range_db" or isinstance(value, int)
        if not is_finite_number(value) or value <= 0 or not whole:
            raise InputError(
                f"{path} sets {name}={value!r}: a number above 0 is needed{'' if field == 'range_db' else ', whole'}."
            )
    return Spectrogram(**found)


def described(sound: Spectrogram) -> str:
    """A spectrogram's settings by diffusers' names, for a message."""
    return ", ".join(f"{name}={getattr(sound, field)}" for field, (name, _) in FIELDS.items())
