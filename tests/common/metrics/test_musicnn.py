"""The audio features: whether distances over them put sounds in order."""

import pytest
import torch

from common.data.music import load_music
from common.metrics.distances import frechet_distance
from common.metrics.efficientnet import extract_features
from common.metrics.musicnn import AudioFeatures, MusicNN, load_musicnn, log_mel_bands
from tests.common.audio.test_spectrogram import SOUND


def test_the_network_has_musicnn_s_size_and_takes_any_length():
    network = load_musicnn()
    assert sum(value.numel() for name, value in network.state_dict().items() if "num_batches" not in name) == 782029
    assert MusicNN.num_features == 200
    for frames in (126, 187):
        assert network(torch.zeros(2, frames, 96)).shape == (2, 200)


def test_another_rate_is_heard_alike():
    """The same second of a chord at two rates gives nearly the same input."""
    inputs = []
    for rate in (16000, 22050):
        time = torch.arange(rate) / rate
        chord = sum(torch.sin(2 * torch.pi * frequency * time) for frequency in (262.0, 330.0, 392.0)) / 3
        inputs.append(log_mel_bands(chord[None], rate)[0, 5:-5].mean(0))
    assert inputs[0].shape == (96,) and (inputs[0] - inputs[1]).abs().mean() < 0.05


def test_distances_put_sounds_in_order():
    """Real against real < light noise < another instrument < white noise."""
    clips = load_music("data/music", "train", limit=140, sound=SOUND)
    by_instrument = {
        name: clips.images[[index for index, other in enumerate(clips.instruments) if other == name]][:28]
        for name in ("piano", "church organ")
    }
    generator = torch.Generator().manual_seed(0)
    waveforms = SOUND.waveforms(by_instrument["piano"], iterations=4)
    hiss = torch.randn(waveforms.shape, generator=generator)
    level = waveforms.square().mean(1, keepdim=True).sqrt()
    extractor = AudioFeatures(SOUND, iterations=4)
    piano = extract_features(extractor, by_instrument["piano"])
    assert piano.shape == (28, 200)
    others = {
        "light noise": SOUND.images(waveforms + 0.03 * level * hiss)[14:],
        "another instrument": by_instrument["church organ"][14:],
        "white noise": SOUND.images(hiss)[14:],
    }
    distances = [frechet_distance(piano[:14], piano[14:])]
    distances += [frechet_distance(piano[:14], extract_features(extractor, images)) for images in others.values()]
    assert distances == sorted(distances) and distances[3] > 1.5 * distances[2]


def test_missing_weights_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr("common.metrics.musicnn.WEIGHTS", tmp_path / "musicnn.safetensors")
    with pytest.raises(ValueError, match=r"musicnn\.safetensors is missing; build it with"):
        load_musicnn()
