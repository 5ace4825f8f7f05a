"""A job on a person's own recordings, from the command line to the WAV files."""

import numpy as np
import pytest
import soundfile

from tests.commands import run
from tests.small_jobs import job, the_row

pytestmark = pytest.mark.slow

DATA = "task/data=audio_folder"


@pytest.mark.exhaustive
def test_a_job_on_recordings(tiny_uag_teacher_folder, tmp_path):
    generator = np.random.default_rng(0)
    for index in range(3):
        tone = np.sin(2 * np.pi * (200 + 100 * index) * np.arange(22050 * 12) / 22050)
        soundfile.write(tmp_path / f"{index}.flac", 0.3 * tone + 0.01 * generator.standard_normal(len(tone)), 22050)
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    arguments = job("uag", tiny_uag_teacher_folder, tmp_path / "out", DATA, f"task.data.folder={tmp_path}")
    done = run(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "3 of 4 files resampled from 22050 Hz to 16000 Hz" in done.stderr
    assert "1 of 4 files skipped, damaged (broken.wav: " in done.stderr
    folder, row = the_row(tmp_path / "out")
    assert row["models"]["real"]["reference_images"] + row["models"]["real"]["images"] <= 15  # clips of three files
    assert row["models"]["teacher"]["fad_musicnn_to_teacher"] < 1e-3 < row["models"]["pruned"]["fad_musicnn_to_teacher"]
    assert row["protocol"]["extractor"].startswith("musicnn: ")
    samples, rate = soundfile.read(folder / "sounds" / "distilled_0.wav")
    assert rate == 16000 and len(samples) == 32256


def test_a_folder_without_recordings_is_told_in_one_line(tiny_uag_teacher_folder, tmp_path):
    done = run(*job("uag", tiny_uag_teacher_folder, tmp_path / "out", DATA, f"task.data.folder={tmp_path}"))
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2 and lines[-1].startswith("error: ") and "holds no recording (.aif" in lines[-1]
    assert "Traceback" not in done.stderr


def test_another_teacher_s_spectrograms_are_refused(tiny_uag_teacher_folder, tmp_path):
    done = run(*job("uag", tiny_uag_teacher_folder, tmp_path / "out", "teacher=audio_diffusion"))
    assert done.returncode == 2 and "and teacher.sound says sample_rate=22050" in done.stderr
