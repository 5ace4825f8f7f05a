"""Sound to images and back."""

import numpy as np
import pytest
import torch

from common.audio.spectrogram import Spectrogram, write_sounds
from common.data.music import load_music

SOUND = Spectrogram(sample_rate=16000, fft_size=1024, hop=512, mels=64, frames=64, range_db=80)


def tone(frequency, count=1):
    return torch.sin(2 * torch.pi * frequency * torch.arange(SOUND.samples) / SOUND.sample_rate).repeat(count, 1)


def test_images_equal_the_library_s_log_mel():
    from transformers.audio_utils import mel_filter_bank, spectrogram

    waveform = tone(440)[0] + 0.1 * torch.randn(SOUND.samples, generator=torch.Generator().manual_seed(0))
    bank = mel_filter_bank(513, 64, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    window = np.hanning(1025)[:-1]
    options = {"frame_length": 1024, "hop_length": 512, "power": 2.0, "mel_filters": bank, "pad_mode": "constant"}
    decibels = spectrogram(waveform.numpy(), window, **options, log_mel="dB")
    expected = 255 * np.clip(1 + (decibels - decibels.max()) / 80, 0, 1)
    assert np.abs(expected - SOUND.images(waveform[None])[0, 0].numpy()).max() <= 0.51


def test_loudness_is_not_kept_and_silence_is_black():
    image = SOUND.images(tone(440))
    assert image.shape == (1, 1, 64, 64) and image.max() == 255
    assert (image.int() - SOUND.images(0.01 * tone(440)).int()).abs().max() <= 1
    silence = SOUND.images(torch.zeros(1, SOUND.samples))
    assert silence.max() == 0 and SOUND.waveforms(silence).abs().max() == 0


@pytest.mark.parametrize("frequency", [220.0, 1000.0, 3000.0])
def test_a_tone_comes_back_at_its_pitch(frequency):
    waveform = SOUND.waveforms(SOUND.images(tone(frequency)))[0]
    assert waveform.shape == (SOUND.samples,) and waveform.abs().max() == pytest.approx(1)
    found = torch.fft.rfft(waveform).abs().argmax() * SOUND.sample_rate / SOUND.samples
    assert found == pytest.approx(frequency, abs=0.05 * frequency + 15)


def test_music_comes_back_within_a_decibel_or_two():
    images = load_music("data/music", "test", limit=8, sound=SOUND).images
    again = SOUND.images(SOUND.waveforms(images))
    assert (again.float() - images.float()).abs().mean() * 80 / 255 < 1.5
    assert torch.equal(SOUND.waveforms(images[2:3])[0], SOUND.waveforms(images)[2]) or torch.allclose(
        SOUND.waveforms(images[2:3])[0], SOUND.waveforms(images)[2], atol=1e-3
    )


def test_sound_files_can_be_read_again(tmp_path):
    import soundfile

    write_sounds(tmp_path, {"teacher": SOUND.images(tone(440, count=3))}, SOUND, count=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["teacher_0.wav", "teacher_1.wav"]
    samples, rate = soundfile.read(tmp_path / "teacher_0.wav")
    assert rate == 16000 and len(samples) == SOUND.samples and 0.8 < np.abs(samples).max() < 0.95
