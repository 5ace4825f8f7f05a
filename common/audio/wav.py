"""Spectrograms as WAV files that a person can play."""

import io
from pathlib import Path

import torch

from common.audio.spectrogram import Spectrogram
from common.runtime.files import write_atomically


def write_sounds(folder: Path, rows: dict[str, torch.Tensor], sound: Spectrogram, count: int = 8) -> None:
    """<folder>/<who>_<number>.wav of the first `count` of each row's uint8 spectrograms (at least count, 1, mels, frames)."""
    import soundfile

    for who, images in rows.items():
        for number, waveform in enumerate(sound.waveforms(images[:count])):
            file = io.BytesIO()
            soundfile.write(file, 0.9 * waveform.numpy(), sound.sample_rate, format="WAV", subtype="PCM_16")
            write_atomically(folder / f"{who}_{number}.wav", file.getvalue())
