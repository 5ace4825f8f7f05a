"""A person's own recordings: what is read, what is told, and the one line that bad input gets."""

import resource
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from common.audio.spectrogram import Spectrogram
from common.data import audio_folder
from common.data.audio_folder import load_audio_folder, read_recording
from common.errors import InputError

SOUND = Spectrogram(sample_rate=8000, fft_size=256, hop=128, mels=16, frames=16, range_db=80)  # clips of 0.24 s


def noise(seconds, rate):
    return 0.1 * np.random.default_rng(0).standard_normal(int(seconds * rate))


@pytest.fixture
def recordings(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(1, 8000), 8000)
    soundfile.write(tmp_path / "b.flac", noise(1, 8000), 8000)
    return tmp_path


def test_clips_are_cut_without_overlap(recordings, capsys):
    clips = load_audio_folder(recordings, "train", None, SOUND)
    assert clips.pieces == ["a.wav"] * 4 + ["b.flac"] * 4 and clips.images.shape == (8, 1, 16, 16)
    assert (clips.images[:4].int() - clips.images[4:].int()).abs().max() <= 1
    assert len(load_audio_folder(recordings, "train", 3, SOUND)) == 3
    assert "files" not in capsys.readouterr().err


def test_every_tenth_file_is_held_out(tmp_path):
    for index in range(11):
        soundfile.write(tmp_path / f"{index:02d}.wav", noise(0.5, 8000), 8000)
    assert set(load_audio_folder(tmp_path, "test", None, SOUND).pieces) == {"09.wav"}
    assert len(set(load_audio_folder(tmp_path, "train", None, SOUND).pieces)) == 10


@pytest.mark.parametrize(
    ("samples", "rate", "told", "clips"),
    [
        (noise(1, 44100), 44100, "1 of 3 files resampled from 44100 Hz to 8000 Hz (c.wav)", 12),
        (np.stack([noise(1, 8000)] * 2, 1), 8000, "1 of 3 files mixed to one channel (c.wav)", 12),
        (noise(0.1, 8000), 8000, "1 of 3 files skipped, shorter than 0.24 s (c.wav)", 8),
        (np.append(np.zeros(4000), noise(0.5, 8000)), 8000, "1 of 3 files with silent clips left out (c.wav: 2 of 4)", 10),
    ],
)
def test_what_is_changed_or_left_out_is_told(recordings, capsys, samples, rate, told, clips):
    soundfile.write(recordings / "c.wav", samples, rate)
    assert len(load_audio_folder(recordings, "train", None, SOUND)) == clips
    assert told in capsys.readouterr().err


def test_a_damaged_file_is_skipped_counted_and_named(recordings, capsys):
    (recordings / "c.wav").write_bytes(b"RIFF, but no sound")
    assert len(load_audio_folder(recordings, "train", None, SOUND)) == 8
    told = capsys.readouterr().err
    assert told.count("1 of 3 files skipped, damaged (c.wav: ") == 1 and "\n" not in told[told.index("1 of 3") :].strip()


def wav_file(rate=8000, channels=1, length=None):
    """8000 samples of noise with a header that says what is asked for; length: bytes of sound."""
    sound = (noise(1, 8000) * 32767).astype("<i2").tobytes()
    length = len(sound) if length is None else length
    head = struct.pack("<4sIHHIIHH4sI", b"fmt ", 16, 1, channels, rate, 2 * rate % 2**32, 2, 16, b"data", length)
    return struct.pack("<4sI4s", b"RIFF", (4 + len(head) + length) % 2**32, b"WAVE") + head + sound


def flac_file(folder, samples):
    """8000 samples of noise as FLAC, whose header says another number of samples."""
    soundfile.write(folder / "written.flac", noise(1, 8000), 8000)
    content = bytearray((folder / "written.flac").read_bytes())
    (folder / "written.flac").unlink()
    content[21] = content[21] & 0xF0 | samples >> 32
    content[22:26] = (samples & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("c.wav", lambda folder: wav_file(rate=2_000_000_011), "c.wav: its header says 2000000011 Hz, and 1000 to 768000 Hz"),
        ("c.wav", lambda folder: wav_file(rate=3), "c.wav: its header says 3 Hz"),
        ("c.wav", lambda folder: wav_file(rate=0), "c.wav: "),
        ("c.wav", lambda folder: wav_file(channels=0), "Channel count is zero"),
        ("c.wav", lambda folder: wav_file(channels=65535), "Too many channels"),
        ("c.flac", lambda folder: flac_file(folder, 2**36 - 1), "c.flac: "),
    ],
)
def test_an_absurd_header_is_named_and_its_word_not_taken_for_memory(recordings, capsys, name, content, told):
    (recordings / name).write_bytes(content(recordings))
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used_memory() + 2**30, before[1]))
    try:
        assert len(load_audio_folder(recordings, "train", None, SOUND)) == 8
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    err = capsys.readouterr().err
    assert "1 of 3 files skipped, damaged (" in err and told in err


def used_memory():
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def test_sound_that_ends_before_its_header_says_is_read_as_far_as_it_goes(recordings):
    (recordings / "c.wav").write_bytes(wav_file(length=2**32 - 1))
    assert len(load_audio_folder(recordings, "train", None, SOUND)) == 12


def test_samples_that_are_no_numbers(recordings, capsys):
    soundfile.write(recordings / "c.wav", np.full(8000, np.nan), 8000, subtype="FLOAT")
    assert len(load_audio_folder(recordings, "train", None, SOUND)) == 8
    assert "damaged (c.wav: it holds samples that are no numbers)" in capsys.readouterr().err


def test_long_files_are_read_in_blocks(recordings, monkeypatch):
    whole = read_recording(recordings / "a.wav", 8000)[0]
    monkeypatch.setattr(audio_folder, "BLOCK", 1000)
    assert torch.equal(read_recording(recordings / "a.wav", 8000)[0], whole)


@pytest.mark.parametrize(
    ("prepare", "split", "limit", "expected"),
    [
        (lambda folder: None, "train", None, "holds no recording"),
        (lambda folder: (folder / "notes.txt").write_text("x"), "train", None, "holds no recording"),
        (lambda folder: soundfile.write(folder / "a.wav", np.zeros(8000), 8000), "train", None, "no clip of split='train'"),
        (lambda folder: soundfile.write(folder / "a.wav", noise(1, 8000), 8000), "test", None, "of 1 files 0 belong to it"),
        (lambda folder: soundfile.write(folder / "a.wav", noise(1, 8000), 8000), "dev", None, "splits are 'train' and 'test'"),
        (lambda folder: folder.rmdir(), "train", None, "is no folder"),
    ],
)
def test_bad_folders_get_one_line(tmp_path, prepare, split, limit, expected):
    prepare(tmp_path)
    with pytest.raises(InputError, match=expected) as caught:
        load_audio_folder(tmp_path, split, limit, SOUND)
    assert "\n" not in str(caught.value)
