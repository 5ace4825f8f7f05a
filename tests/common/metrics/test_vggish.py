"""FAD over VGGish: front end and network against NumPy, the distance against the formula."""

import numpy as np
import pytest
import scipy.linalg
import torch

from common.audio.spectrogram import Spectrogram
from common.errors import InputError
from common.metrics.vggish import VGGish, VggishDistance, log_mel_patches, resampled

SOUND = Spectrogram(sample_rate=16000, fft_size=1024, hop=512, mels=64, frames=64, range_db=80)


def clips(count=2, seconds=2.1):
    times = torch.arange(int(16000 * seconds)) / 16000
    noise = torch.rand(count, len(times), generator=torch.Generator().manual_seed(0)) - 0.5
    tones = torch.sin(2 * torch.pi * torch.tensor([[300.0], [1700.0]]) * times)
    return (0.6 * tones + 0.3 * noise).double()


def patches_by_numpy(signal):
    """One clip: magnitudes of 25 ms every 10 ms, HTK's mel bands from 125 to 7500 Hz, logarithm, whole 0.96 s."""

    def mel(hertz):
        return 1127 * np.log(1 + hertz / 700)

    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    starts = range(0, len(signal) - 399, 160)
    magnitudes = np.array([np.abs(np.fft.rfft(signal[start : start + 400] * window, 512)) for start in starts])
    edges = np.linspace(mel(125), mel(7500), 66)
    bank = np.zeros((257, 64))
    for bin_number in range(1, 257):
        place = mel(bin_number * 8000 / 256)
        for band in range(64):
            up = (place - edges[band]) / (edges[band + 1] - edges[band])
            down = (edges[band + 2] - place) / (edges[band + 2] - edges[band + 1])
            bank[bin_number, band] = max(0, min(up, down))
    bands = np.log(magnitudes @ bank + 0.01)
    return np.array([bands[start : start + 96] for start in range(0, len(bands) - 95, 96)])


def test_front_end():
    sounds = clips()
    found = log_mel_patches(sounds, hop=96)
    assert found.shape == (2, 2, 96, 64)
    for clip, patches in zip(sounds.numpy(), found.numpy(), strict=True):
        assert np.allclose(patches, patches_by_numpy(clip), atol=1e-5)
    assert torch.equal(log_mel_patches(sounds, hop=48)[:, 2], found[:, 1])
    with pytest.raises(ValueError, match="0.975 s of sound"):
        log_mel_patches(sounds[:, :8000], hop=96)


def test_resampling_keeps_a_tone():
    times = torch.arange(22050) / 22050
    found = resampled(torch.sin(2 * torch.pi * 440 * times)[None], 22050)
    expected = torch.sin(2 * torch.pi * 440 * torch.arange(16000) / 16000)
    assert found.shape == (1, 16000) and (found[0] - expected)[200:-200].abs().max() < 0.01


def convolved(image, weight, bias):
    """Zero-padded 3x3 convolution and ReLU of (channels, height, width), by NumPy."""
    _, height, width = image.shape
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2)).transpose(1, 2, 0, 3, 4)
    found = windows.reshape(height * width, -1) @ weight.reshape(len(weight), -1).T + bias
    return np.maximum(found, 0).T.reshape(-1, height, width)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file as torchvggish publishes it, of random weights under which embeddings differ."""
    torch.manual_seed(0)
    network = VGGish()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(module.weight)
    path = tmp_path_factory.mktemp("vggish") / "vggish-10086976.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.slow
def test_network_and_names_of_its_weights(weights):
    state = {name: value.numpy() for name, value in torch.load(weights, weights_only=True).items()}
    convolutions = [f"features.{place}" for place in (0, 3, 6, 8, 11, 13)]  # of torchvggish
    linear = [f"embeddings.{place}" for place in (0, 2, 4)]
    assert sorted(state) == sorted(f"{name}.{kind}" for name in convolutions + linear for kind in ("weight", "bias"))
    patch = np.random.default_rng(0).normal(size=(96, 64)).astype(np.float32)
    image = patch[None]
    for number, name in enumerate(convolutions):
        image = convolved(image, state[f"{name}.weight"], state[f"{name}.bias"])
        if number in (0, 1, 3, 5):
            image = image.reshape(len(image), image.shape[1] // 2, 2, image.shape[2] // 2, 2).max((2, 4))
    values = image.transpose(1, 2, 0).reshape(-1)  # height, width, channels: TensorFlow's order
    for name in linear:
        values = state[f"{name}.weight"] @ values + state[f"{name}.bias"]
        values = values if name == "embeddings.4" else np.maximum(values, 0)
    network = VGGish()
    network.load_state_dict(torch.load(weights, weights_only=True))
    with torch.no_grad():
        assert np.allclose(network(torch.from_numpy(patch)[None])[0].numpy(), values, rtol=1e-3, atol=1e-3 * values.std())


@pytest.mark.slow
def test_distance(weights):
    metric = VggishDistance("fad_vggish", SOUND, 2, str(weights), hop_seconds=0.96, activation=False)
    metric.load(torch.device("cpu"))
    pictures = SOUND.images(clips(2, SOUND.samples / 16000).float())
    rows = metric.rows(pictures, None)
    expected = metric.network(log_mel_patches(SOUND.waveforms(pictures, 2), 96).flatten(0, 1))
    assert rows.shape == (4, 128) and torch.allclose(rows, expected, rtol=1e-4)
    other = rows.flip(1) + 1
    root = scipy.linalg.svdvals((rows - rows.mean(0)).double().numpy() @ (other - other.mean(0)).double().numpy().T).sum()
    spread = (rows.var(0).sum() + other.var(0).sum()).item()
    wanted = (rows.mean(0) - other.mean(0)).square().sum().item() + spread - 2 * root / 3
    assert metric.figures(other, rows, 0)(torch.arange(len(other)))["fad_vggish"] == pytest.approx(wanted, rel=1e-3)


def test_bad_input(weights, tmp_path):
    with pytest.raises(ValueError, match="this task draws images"):
        VggishDistance("fad_vggish", None, 2, None, 0.96, False)
    with pytest.raises(InputError, match="is missing: download http"):
        VggishDistance("fad_vggish", SOUND, 2, str(tmp_path / "absent.pth"), 0.96, False).load(torch.device("cpu"))
    (tmp_path / "damaged.pth").write_bytes(b"cut off")
    with pytest.raises(InputError, match="cannot be loaded as VGGish"):
        VggishDistance("fad_vggish", SOUND, 2, str(tmp_path / "damaged.pth"), 0.96, False).load(torch.device("cpu"))
