"""Whole jobs on teachers with settings out of the ordinary: honoured to the end, or refused before any work."""

import json
import shutil

import numpy as np
import pytest
import soundfile
from PIL import Image

from common.audio.spectrogram import Spectrogram
from common.cost.macs import count_parameters
from common.errors import InputError
from common.models.loading import load_denoiser
from common.pruning.plan import Plan, apply_plan
from experiments.shared.settings_check import checked
from tests.commands import run
from tests.small_jobs import job, the_row
from tests.small_teachers import NOISE, change, stable_diffusion
from tests.test_conf import compose_config

pytestmark = pytest.mark.slow

MEL = {"x_res": 64, "y_res": 64, "sample_rate": 44100, "n_fft": 4096, "hop_length": 1024, "top_db": 80}


def test_a_latent_consistency_model_is_pruned_and_not_trained(tmp_path):
    from diffusers import LCMScheduler

    teacher = stable_diffusion(tmp_path / "lcm", {"time_cond_proj_dim": 16}, scheduler=LCMScheduler(**NOISE))
    done = run(*job("t2i", teacher, tmp_path / "out"))
    assert done.returncode == 2 and "The teacher is a latent consistency model" in done.stderr.splitlines()[-1]
    untrained = [value for value in job("t2i", teacher, tmp_path / "out") if not value.startswith("distill.")]
    done = run(*untrained, "distill=none")
    assert done.returncode == 0, done.stderr[-2000:]
    _, row = the_row(tmp_path / "out")
    assert row["models"]["pruned"]["latent_mse"] > 0


def test_a_student_is_the_next_teacher(tmp_path, two_level_uig_teacher_folder):
    """Layers go, then channels: the second job's plan and the first one's are one plan of the first teacher."""
    few = ["distill.steps=2", "evaluation.images=4", "evaluation.batch_size=4", "evaluation.latency_rounds=1"]
    done = run(*job("uig", two_level_uig_teacher_folder, tmp_path / "first", *few, "method.ratio=0.1", method="laptop_diff"))
    assert done.returncode == 0, done.stderr[-2000:]
    first, _ = the_row(tmp_path / "first")
    words = job("uig", first / "student", tmp_path / "second", *few, "method.variant=magnitude", method="diff_pruning")
    told = run(*words, "dry_run=true")
    assert told.returncode == 0, told.stderr[-2000:]
    done = run(*words)
    assert done.returncode == 0, done.stderr[-2000:]
    second, row = the_row(tmp_path / "second")
    student = load_denoiser(second / "student")
    both = Plan.load(first / "plan").then(Plan.load(second / "plan"))
    at_once = apply_plan(load_denoiser(two_level_uig_teacher_folder), both)
    assert count_parameters(at_once) == count_parameters(student) == row["models"]["distilled"]["parameters"]
    assert {name: weight.shape for name, weight in at_once.state_dict().items()} == {
        name: weight.shape for name, weight in student.state_dict().items()
    }


@pytest.fixture
def pictures(tmp_path):
    """Grey and coloured squares with captions."""
    generator = np.random.default_rng(0)
    for name, channels in (("grey", 1), ("colour", 3)):
        folder = tmp_path / name
        folder.mkdir()
        for number in range(30):
            pixels = generator.integers(0, 256, (64, 64, channels), np.uint8)
            Image.fromarray(pixels if channels == 3 else pixels[:, :, 0]).save(folder / f"{number}.png")
        rows = [json.dumps({"file_name": f"{number}.png", "text": f"a thing {number}"}) for number in range(30)]
        (folder / "metadata.jsonl").write_text("\n".join(rows))
    return tmp_path


@pytest.mark.exhaustive
def test_a_grey_teacher_on_grey_images_and_not_on_colours(pictures):
    teacher = stable_diffusion(pictures / "teacher", vae={"in_channels": 1, "out_channels": 1})

    def on(folder):
        data = ["task/data=captioned_folder", f"task.data.folder={pictures / folder}", "task.data.size=64"]
        return run(*job("t2i", teacher, pictures / "out", *data))

    refused = on("colour")
    assert refused.returncode == 2 and "images are grey, and those of the data in colour" in refused.stderr.splitlines()[-1]
    done = on("grey")
    assert done.returncode == 0, done.stderr[-2000:]
    _, row = the_row(pictures / "out")
    assert np.isfinite(row["models"]["distilled"]["fd_effnet"])


@pytest.fixture
def audio_teacher(tiny_uag_teacher_folder, tmp_path):
    folder = shutil.copytree(tiny_uag_teacher_folder, tmp_path / "audio")
    change(folder, "mel/mel_config.json", **MEL)
    return folder


@pytest.mark.exhaustive
def test_a_job_at_the_audio_teacher_s_own_sampling_rate(audio_teacher, tmp_path):
    generator = np.random.default_rng(0)
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    for number in range(2):
        soundfile.write(recordings / f"{number}.wav", 0.1 * generator.standard_normal(44100 * 20), 44100)
    data = ["task/data=audio_folder", f"task.data.folder={recordings}"]
    done = run(*job("uag", audio_teacher, tmp_path / "out", *data))
    told = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and "sample_rate=44100, n_fft=4096" in told and "give teacher.sound=null" in told
    assert "files resampled" not in done.stderr and not list((tmp_path / "out").rglob("*.json"))
    done = run(*job("uag", audio_teacher, tmp_path / "out", *data, "teacher.sound=null"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "resampled" not in done.stderr
    folder, _ = the_row(tmp_path / "out")
    samples, rate = soundfile.read(folder / "sounds" / "distilled_0.wav")
    assert (rate, len(samples)) == (44100, 63 * 1024)


def test_null_takes_the_sound_of_the_teacher_everywhere(audio_teacher, tiny_uig_teacher_folder):
    from hydra.utils import instantiate

    cfg = compose_config("config", "task=uag", f"teacher.path={audio_teacher}", "teacher.sound=null")
    expected = Spectrogram(44100, 4096, 1024, 64, 64, 80)
    assert [instantiate(part) for part in (cfg.task.sound, cfg.task.data.sound, cfg.task.features.sound)] == [expected] * 3
    cfg = compose_config("config", "task=uag", f"teacher.path={tiny_uig_teacher_folder}", "teacher.sound=null")
    with pytest.raises(InputError, match=r"^teacher\.sound=null: .* has no mel/mel_config\.json"):
        checked(cfg)
    with pytest.raises(InputError, match=r"^teacher\.path=.*sample_rate=44100, n_fft=4096"):
        checked(compose_config("config", "task=uag", f"teacher.path={audio_teacher}"))
