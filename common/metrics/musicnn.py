"""The offline audio feature extractor: musicnn (Pons and Serra 2019, ISC), a music tagger trained on MagnaTagATune."""

import torch
from torch import nn
from torch.nn import functional as F

from common.audio.spectrogram import Spectrogram
from common.errors import InputError
from common.runtime.files import ROOT
from common.settings import AtLeastOne

WEIGHTS = ROOT / "data/musicnn/musicnn.safetensors"
SAMPLE_RATE, FFT_SIZE, HOP, MELS = 16000, 512, 256, 96
CHUNK = 4  # clips at a time: more do not fit a processor's cache, and take twice as long
EPSILON = 1e-3  # of batch normalisation, TensorFlow's


class Timbre(nn.Module):
    """A convolution of the image (batch, 1, frames, mels), of which the loudest band is kept: (batch, filters, frames)."""

    def __init__(self, filters: int, frames: int, mels: int):
        super().__init__()
        self.before, self.after = (frames - 1) // 2, frames // 2
        self.conv = nn.Conv2d(1, filters, (frames, mels))
        self.norm = nn.BatchNorm2d(filters, eps=EPSILON)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(F.pad(image, (0, 0, self.before, self.after))).relu()).amax(3)


class ConvBlock(nn.Module):
    """Seven frames of all channels to 64 channels: (batch, channels, frames) to (batch, 64, frames)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv1d(channels, 64, 7, padding=3)
        self.norm = nn.BatchNorm1d(64, eps=EPSILON)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(frames).relu())


class MusicNN(nn.Module):
    """Log-mel images (batch, frames, 96) to the 200 units below its tags. Layers as in musicnn/models.py of PyPI's musicnn."""

    num_features = 200

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1, eps=EPSILON)
        shapes = ((204, 7, 38), (204, 7, 67), (51, 128, 1), (51, 64, 1), (51, 32, 1))
        self.front = nn.ModuleList([Timbre(*shape) for shape in shapes])
        self.middle = nn.ModuleList([ConvBlock(561), ConvBlock(64), ConvBlock(64)])
        self.pooled_norm = nn.BatchNorm1d(1506, eps=EPSILON)
        self.dense = nn.Linear(1506, 200)
        self.dense_norm = nn.BatchNorm1d(200, eps=EPSILON)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        image = self.norm(image[:, None])
        front = torch.cat([part(image) for part in self.front], 1)
        first = self.middle[0](front)
        second = first + self.middle[1](first)
        third = second + self.middle[2](second)
        channels = torch.cat([front, first, second, third], 1)
        pooled = torch.stack([channels.amax(2), channels.mean(2)], 2).flatten(1)
        return self.dense_norm(self.dense(self.pooled_norm(pooled)).relu())


class AudioFeatures(nn.Module):
    """uint8 spectrograms (count, 1, mels, frames) of `sound` to features (count, 200) of the sound they stand for.

    Real and drawn spectrograms take the same way through `iterations` of Griffin-Lim: what it loses is lost in both.
    """

    name = "musicnn"
    distance = "fad"
    description = "musicnn: MTT_musicnn, 200 units below the tags, of the sound that Griffin-Lim makes of a spectrogram"
    num_features = MusicNN.num_features

    def __init__(self, sound: Spectrogram, iterations: AtLeastOne):
        super().__init__()
        self.sound, self.iterations = sound, iterations
        self.network = load_musicnn()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        waveforms = (self.sound.waveforms(chunk, self.iterations) for chunk in images.split(CHUNK))
        return torch.cat([self.network(log_mel_bands(each, self.sound.sample_rate)) for each in waveforms])


def log_mel_bands(waveforms: torch.Tensor, sample_rate: int) -> torch.Tensor:
    """musicnn's input (count, frames, 96) of waveforms (count, samples) within [-1, 1]: Slaney's bands up to 8 kHz.

    Its windows are 512 samples at 16 kHz; at another rate they last as long.
    """
    from transformers.audio_utils import mel_filter_bank

    size, hop = (round(length * sample_rate / SAMPLE_RATE) for length in (FFT_SIZE, HOP))
    bank = mel_filter_bank(size // 2 + 1, MELS, 0.0, SAMPLE_RATE / 2, sample_rate, norm="slaney", mel_scale="slaney")
    window = torch.hann_window(size, device=waveforms.device)
    spectra = torch.stft(waveforms, size, hop, window=window, return_complex=True, pad_mode="constant")
    power = (spectra.abs() * FFT_SIZE / size).square()
    return (1 + 10000 * power.transpose(1, 2) @ torch.from_numpy(bank).to(power)).log10()


def load_musicnn() -> MusicNN:
    """The trained network (experiments/datasets/build_musicnn.py), in float32, frozen."""
    from safetensors.torch import load_file

    if not WEIGHTS.is_file():
        raise InputError(f"{WEIGHTS} is missing; build it with experiments/datasets/build_musicnn.py.")
    network = MusicNN()
    network.load_state_dict(load_file(WEIGHTS), strict=False)  # what counts batches is not stored
    return network.eval().requires_grad_(False)
