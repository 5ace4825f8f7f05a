"""What the images of an audio teacher stand for: teacher.sound, or the teacher's own settings."""

from dataclasses import asdict
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from common.architectures import local_folder
from common.errors import InputError
from common.hub import find_folder
from common.mel_settings import described, read_mel
from common.spectrogram import Spectrogram


def settle_sound(cfg: DictConfig) -> None:
    """Fills teacher.sound=null with the settings in the teacher's mel/mel_config.json.

    InputError where it has none, and where a local teacher's are others than those given (a hub's are compared when it is
    loaded: check_sound).
    """
    if "sound" not in cfg.teacher:
        return
    if cfg.teacher.sound is not None:
        folder = local_folder(cfg.teacher.path)
        check_sound(cfg, None if folder is None else read_mel(folder))
        return
    sound = read_mel(find_folder(cfg.teacher.path, cfg.teacher.revision))
    if sound is None:
        raise InputError(
            f"teacher.sound=null: {cfg.teacher.path} has no mel/mel_config.json that tells what its images stand for; give "
            "sample_rate, fft_size, hop, mels, frames and range_db as in conf/teacher/small_uag.yaml."
        )
    OmegaConf.update(cfg, "teacher.sound", {"_target_": "common.spectrogram.Spectrogram", **asdict(sound)}, force_add=True)


def check_sound(cfg: DictConfig, own: Spectrogram | None) -> None:
    """InputError where teacher.sound is not what the teacher's folder says itself (`own`), if it says anything."""
    if own is None or cfg.task.sound is None:
        return
    given: Any = hydra.utils.instantiate(cfg.task.sound)
    if given != own:
        raise InputError(
            f"teacher.path={cfg.teacher.path}: its mel/mel_config.json has {described(own)}, and teacher.sound says "
            f"{described(given)}: give teacher.sound=null, which takes the teacher's own."
        )
