"""What the images of an audio teacher stand for: teacher.sound, or the teacher's own settings."""

from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig, OmegaConf

from common.audio.spectrogram import Spectrogram
from common.errors import InputError
from common.models.architectures import local_folder
from common.models.hub import find_folder
from common.models.mel_settings import described, read_mel

TARGET = {"_target_": "common.audio.spectrogram.Spectrogram"}


def teacher_sound(cfg: DictConfig) -> dict[str, Any]:
    """What ${teacher_sound:} stands for: teacher.sound, or where that is null what the teacher's mel/mel_config.json says.

    InputError where it has none, and where a local teacher's are others than those given (a hub's are compared when it is
    loaded: check_sound).
    """
    given = cfg.teacher.get("sound")
    if given is not None:
        given = OmegaConf.to_container(given, resolve=True)
        folder = local_folder(cfg.teacher.path)
        check_sound(cfg.teacher.path, given, None if folder is None else read_mel(folder))
        return given
    sound = read_mel(find_folder(cfg.teacher.path, cfg.teacher.revision))
    if sound is None:
        raise InputError(
            f"teacher.sound=null: {cfg.teacher.path} has no mel/mel_config.json that tells what its images stand for; give "
            "sample_rate, fft_size, hop, mels, frames and range_db as in conf/teacher/small_uag.yaml."
        )
    return {**TARGET, **asdict(sound)}


def check_sound(path: str, given: dict[str, Any] | None, own: Spectrogram | None) -> None:
    """InputError where the settings `given` are not what the teacher's folder says itself (`own`), if it says anything."""
    if own is None or given is None or TARGET | asdict(own) == dict(given):
        return
    told = ", ".join(f"{name}={value}" for name, value in given.items() if name not in TARGET)
    raise InputError(
        f"teacher.path={path}: its mel/mel_config.json has {described(own)}, and teacher.sound says {told}: give "
        "teacher.sound=null, which takes the teacher's own."
    )
