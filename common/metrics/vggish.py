"""FAD over VGGish (Kilgour et al. 2019): its log-mel front end, its network, and the Fréchet distance of its embeddings."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import nn

from common.audio.spectrogram import Spectrogram
from common.errors import InputError, first_line
from common.metrics.jackknife import Figures
from common.models.metric_weights import weights_file
from common.settings import AtLeastOne, Positive

URL = "https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth"
SAMPLE_RATE, WINDOW, HOP, FFT_SIZE = 16000, 400, 160, 512  # 25 ms every 10 ms
MELS, LOWEST, HIGHEST, LOG_OFFSET = 64, 125.0, 7500.0, 0.01
FRAMES = 96  # of a patch: 0.96 s


def mel_filters() -> torch.Tensor:
    """Triangles (257, 64) in HTK's mel scale, each of height 1, none over 0 Hz."""
    from transformers.audio_utils import mel_filter_bank

    bank = mel_filter_bank(
        FFT_SIZE // 2 + 1, MELS, LOWEST, HIGHEST, SAMPLE_RATE, norm=None, mel_scale="kaldi", triangularize_in_mel_space=True
    )
    bank[0] = 0
    return torch.from_numpy(bank).float()


def log_mel_patches(waveforms: torch.Tensor, hop: int) -> torch.Tensor:
    """Patches (count, patches, 96, 64) of waveforms (count, samples) at 16 kHz within [-1, 1], one every `hop` frames.

    Magnitudes of windows that lie whole within the sound; InputError where it is shorter than a patch.
    """
    needed = (FRAMES - 1) * HOP + WINDOW
    if waveforms.shape[1] < needed:
        raise InputError(
            f"VGGish needs {needed / SAMPLE_RATE:.3f} s of sound, a clip has {waveforms.shape[1] / SAMPLE_RATE:.3f} s."
        )
    window = torch.hann_window(WINDOW, device=waveforms.device, dtype=waveforms.dtype)
    frames = waveforms.unfold(1, WINDOW, HOP) * window
    magnitudes = torch.fft.rfft(frames, FFT_SIZE).abs()
    bands = (magnitudes @ mel_filters().to(magnitudes) + LOG_OFFSET).log()
    return bands.unfold(1, FRAMES, hop).transpose(2, 3)


class VGGish(nn.Module):
    """Patches (count, 96, 64) to embeddings (count, 128), before the last activation. Names as in torchvggish's file."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for width in (64, None, 128, None, 256, 256, None, 512, 512, None):  # None: halves both sides
            if width is None:
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(512 * 6 * 4, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 128)
        )

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return self.embeddings(self.features(patches[:, None]).permute(0, 2, 3, 1).flatten(1))  # TensorFlow's order


class VggishDistance:
    """Fréchet distance between VGGish embeddings of the sounds that spectrograms stand for.

    name: under which it is given. sound, iterations: of Griffin-Lim, as of common.metrics.musicnn.AudioFeatures; real and drawn
    spectrograms take the same way. weights: torchvggish's file (.pth) or the same tensors as .safetensors; None: torch.hub's
    cache. hop_seconds: between patches of 0.96 s. activation: whether the embedding is taken after the last ReLU.
    """

    needs_real = True

    def __init__(
        self,
        name: str,
        sound: Spectrogram | None,
        iterations: AtLeastOne,
        weights: str | None,
        hop_seconds: Positive,
        activation: bool,
    ):
        if sound is None:
            raise InputError(f"{name} is of sounds, and this task draws images.")
        self.name, self.sound, self.iterations, self.weights = name, sound, iterations, weights
        self.hop, self.activation = round(hop_seconds * SAMPLE_RATE / HOP), activation
        if self.hop < 1:
            raise InputError(f"hop_seconds={hop_seconds} of {name}: at least {HOP / SAMPLE_RATE} s are needed.")

    def load(self, device: torch.device) -> None:
        """The network; InputError without its weights."""
        self.network, self.device = load_vggish(self.weights).to(device), device

    @torch.no_grad()
    def rows(self, images: torch.Tensor, captions: list[str] | None) -> torch.Tensor:
        """Embeddings (patches, 128) of uint8 spectrograms (count, 1, mels, frames)."""
        waveforms = self.sound.waveforms(images.to(self.device), self.iterations)
        patches = log_mel_patches(resampled(waveforms, self.sound.sample_rate), self.hop)
        embeddings = self.network(patches.flatten(0, 1))
        return (embeddings.relu() if self.activation else embeddings).float().cpu()

    def figures(self, rows: torch.Tensor, real: torch.Tensor, seed: int) -> Figures:
        from common.metrics.distances import check_pair, frechet_of

        check_pair(real, rows)
        distance = frechet_of(real.double().mean(0), torch.cov(real.double().T), rows)
        return lambda kept: {self.name: distance(kept)}


def resampled(waveforms: torch.Tensor, sample_rate: int) -> torch.Tensor:
    """Waveforms (count, samples) at 16 kHz, by SciPy's polyphase filter."""
    from scipy.signal import resample_poly

    if sample_rate == SAMPLE_RATE:
        return waveforms
    shared = math.gcd(SAMPLE_RATE, sample_rate)
    values = resample_poly(waveforms.cpu().numpy(), SAMPLE_RATE // shared, sample_rate // shared, axis=1)
    return torch.from_numpy(np.ascontiguousarray(values)).to(waveforms)


def load_vggish(weights: str | None) -> VGGish:
    """The trained network from `weights` or torch.hub's cache, frozen; InputError where it is in neither."""
    path = weights_file(URL, None if weights is None else Path(weights))
    network = VGGish()
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            network.load_state_dict(load_file(path))
        else:
            network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # safetensors, pickle, zip and torch each raise their own kind for a damaged or another file
        raise InputError(f"{path} cannot be loaded as VGGish: {first_line(error)}") from error
    return network.eval().requires_grad_(False)
