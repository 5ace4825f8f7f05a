"""A folder of recordings as spectrograms: WAV, FLAC, OGG, MP3, whatever libsndfile reads."""

from fractions import Fraction
from pathlib import Path

import torch

from common.audio.spectrogram import Spectrogram
from common.data.music import Clips
from common.data.splits import evenly_spaced, files_of_split, tell
from common.errors import InputError
from common.runtime.content import while_unchanged
from common.runtime.progress import progress_bar
from common.settings import AtLeastOne

ENDINGS = {".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff"}
RATES = (1_000, 768_000)  # Hz: what a header may say; resampling takes memory by its word
BLOCK = 2**26  # samples that are asked for at once: not as many as a header says (256 MiB)
SILENCE = 1e-4  # of full scale: a clip that never rises above -80 dB is left out


def load_audio_folder(folder: str | Path | None, split: str, limit: AtLeastOne | None, sound: Spectrogram) -> Clips:
    """Clips without overlap of the recordings below `folder`, at most `limit` evenly spaced ones.

    split: "test" holds every tenth file by name, "train" the others. A clip's piece is its file, its instrument unknown.
    What was resampled, mixed to one channel, skipped or left out is told in a line on standard error. InputError for a
    folder that does not exist, and for one without any clip.
    """
    files, total = files_of_split(folder, split, ENDINGS, "recording")
    images, pieces = read_recordings(Path(folder), tuple(files), sound, f"reading {split} recordings")
    if not pieces:
        raise InputError(f"{folder} holds no clip of split={split!r}: of {total} files {len(files)} belong to it.")
    chosen = evenly_spaced(range(len(pieces)), limit)
    return Clips(images[list(chosen)], [pieces[index] for index in chosen], [""] * len(chosen))


@while_unchanged
def read_recordings(
    folder: Path, wanted: tuple[Path, ...], sound: Spectrogram, description: str
) -> tuple[torch.Tensor, list[str]]:
    """uint8 (count, 1, mels, frames) of all audible clips, and the file of each; read once, for a job asks more than once."""
    told: dict[str, list[str]] = {}
    images, pieces = [torch.empty(0, 1, sound.mels, sound.frames, dtype=torch.uint8)], []
    with progress_bar(description, len(wanted)) as bar:
        for path in wanted:
            bar.advance()
            name = str(path.relative_to(folder))
            try:
                waveform, changes = read_recording(path, sound.sample_rate)
            except RuntimeError as error:  # soundfile's own kind
                told.setdefault("skipped, damaged", []).append(f"{name}: {error}")
                continue
            for change in changes:
                told.setdefault(change, []).append(name)
            count = len(waveform) // sound.samples
            if not count:
                told.setdefault(f"skipped, shorter than {sound.samples / sound.sample_rate:.2f} s", []).append(name)
                continue
            clips = waveform[: count * sound.samples].reshape(count, sound.samples)
            audible = clips.abs().amax(1) > SILENCE
            if not audible.all():
                told.setdefault("with silent clips left out", []).append(f"{name}: {int((~audible).sum())} of {count}")
            if audible.any():
                images.append(sound.images(clips[audible]))
                pieces += [name] * int(audible.sum())
    for what, names in told.items():
        tell(folder, wanted, what, names)
    return torch.cat(images), pieces


def read_recording(path: Path, sample_rate: int) -> tuple[torch.Tensor, list[str]]:
    """Float samples (count,) of one channel at sample_rate, and what had to be changed for it. RuntimeError: damaged."""
    import numpy as np
    import soundfile
    from scipy.signal import resample_poly

    with soundfile.SoundFile(path) as file:
        rate, channels = file.samplerate, file.channels
        if not RATES[0] <= rate <= RATES[1]:
            raise RuntimeError(f"its header says {rate} Hz, and {RATES[0]} to {RATES[1]} Hz are possible")
        parts = [np.empty(0, np.float32)]
        while len(block := file.read(BLOCK // channels, dtype="float32", always_2d=True)):
            parts.append(block.mean(1))
    changes = [] if channels == 1 else ["mixed to one channel"]
    mono = np.concatenate(parts)
    if not np.isfinite(mono).all():
        raise RuntimeError("it holds samples that are no numbers")
    if rate != sample_rate:
        ratio = Fraction(sample_rate, rate)
        mono = resample_poly(mono, ratio.numerator, ratio.denominator)
        changes.append(f"resampled from {rate} Hz to {sample_rate} Hz")
    return torch.from_numpy(mono), changes
