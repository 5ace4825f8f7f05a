"""Sound as one-channel images and back: log-mel spectrograms as AudioDiffusion draws them, and Griffin-Lim."""

import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from common.runtime.files import write_atomically
from common.runtime.seeding import generator_for
from common.settings import AtLeastOne, Positive

FLOOR = 1e-10  # of power, so that silence has a logarithm


@dataclass(frozen=True)
class Spectrogram:
    """Log-mel spectrograms of one size. A waveform is float (count, samples), an image uint8 (count, 1, mels, frames).

    Row 0 is the lowest band. 255 is the loudest place of a clip and 0 is `range_db` decibels below it (diffusers' Mel, of
    AudioDiffusion): how loud a clip is as a whole is not kept. sample_rate in Hz; fft_size and hop in samples.
    """

    sample_rate: AtLeastOne
    fft_size: AtLeastOne
    hop: AtLeastOne
    mels: AtLeastOne
    frames: AtLeastOne
    range_db: Positive

    @property
    def samples(self) -> int:
        """Length of the clip behind one image."""
        return (self.frames - 1) * self.hop

    @cached_property
    def filters(self) -> torch.Tensor:
        """Slaney's mel filters (mels, fft_size / 2 + 1), each of unit area, from 0 Hz to half the sampling rate."""
        from transformers.audio_utils import mel_filter_bank

        bank = mel_filter_bank(
            self.fft_size // 2 + 1, self.mels, 0.0, self.sample_rate / 2, self.sample_rate, norm="slaney", mel_scale="slaney"
        )
        return torch.from_numpy(bank.T).float()

    def images(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Spectrograms of clips of `samples` each."""
        power = self.transform(waveforms).abs().square()
        bands = (self.filters.to(power) @ power).clamp_min(FLOOR)
        loudest = bands.amax((1, 2), keepdim=True)
        above = 1 + 10 / self.range_db * (bands / loudest).log10()
        return (255 * above.clamp_min(0) * (loudest > FLOOR)).round().to(torch.uint8)[:, None]

    def waveforms(self, images: torch.Tensor, iterations: int = 32) -> torch.Tensor:
        """Clips of `samples` each, their loudest sample 1; the phases are found by Griffin-Lim (Perraudin et al. 2013).

        The same images give the same sound: all start from one random set of phases. A black image is silence.
        """
        magnitudes = self.linear_magnitudes(images)
        angles = 2 * torch.pi * torch.rand(magnitudes.shape[1:], generator=generator_for(0))
        estimate = torch.polar(torch.ones_like(angles), angles).to(magnitudes.device)
        previous = torch.zeros_like(estimate)
        for _ in range(iterations):
            rebuilt = self.transform(self.inverse(magnitudes * estimate))
            estimate = torch.sgn(rebuilt + 0.99 * (rebuilt - previous))
            previous = rebuilt
        sound = self.inverse(magnitudes * estimate)
        return sound / sound.abs().amax(1, keepdim=True).clamp_min(FLOOR) * (images.amax((1, 2, 3)) > 0)[:, None]

    def linear_magnitudes(self, images: torch.Tensor, iterations: int = 50) -> torch.Tensor:
        """Magnitudes (count, fft_size / 2 + 1, frames), not below zero, whose mel bands come near to the images'.

        Multiplicative updates of the squared error (Lee and Seung 2000) from an even spread.
        """
        bands = 10 ** ((images[:, 0].float() / 255 - 1) * self.range_db / 10)
        filters = self.filters.to(bands)
        target = (filters.T @ bands).clamp_min(FLOOR)
        power = target
        for _ in range(iterations):
            power = power * target / (filters.T @ (filters @ power)).clamp_min(FLOOR)
        return power.sqrt()

    def transform(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Short-time Fourier transform (count, fft_size / 2 + 1, frames), Hann window."""
        window = torch.hann_window(self.fft_size, device=waveforms.device)
        return torch.stft(waveforms, self.fft_size, self.hop, window=window, return_complex=True, pad_mode="constant")

    def inverse(self, spectra: torch.Tensor) -> torch.Tensor:
        """The waveforms whose transform comes nearest to `spectra`."""
        return torch.istft(spectra, self.fft_size, self.hop, window=torch.hann_window(self.fft_size, device=spectra.device))


def write_sounds(folder: Path, rows: dict[str, torch.Tensor], sound: Spectrogram, count: int = 8) -> None:
    """<folder>/<who>_<number>.wav of the first `count` of each row's uint8 spectrograms (at least count, 1, mels, frames)."""
    import soundfile

    for who, images in rows.items():
        for number, waveform in enumerate(sound.waveforms(images[:count])):
            file = io.BytesIO()
            soundfile.write(file, 0.9 * waveform.numpy(), sound.sample_rate, format="WAV", subtype="PCM_16")
            write_atomically(folder / f"{who}_{number}.wav", file.getvalue())
