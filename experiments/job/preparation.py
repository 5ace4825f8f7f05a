"""What a job needs before it takes its folder, and every check that needs the teacher: the last things before any work."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from common.errors import InputError, first_line
from experiments.shared.job_id import check_unchanged
from experiments.shared.stages import stage


@dataclass
class Prepared:
    """teacher: on the job's device. method: made from cfg.method. prompts: captions and names of evaluation_prompts.

    seconds: what each stage of the job took so far.
    """

    teacher: Any
    method: Any
    prompts: tuple[list[str], list[str] | None]
    seconds: dict[str, float]


@contextmanager
def empty_folder_goes(folder: Path) -> Iterator[None]:
    """Where the block ends in an error, what Hydra made of a job's folder goes again while it is empty."""
    try:
        yield
    except BaseException:
        with suppress(OSError):  # up to the first that is not empty
            for each in (folder, *folder.parents[:2]):  # id, method, task
                each.rmdir()
        raise


def prepare(cfg: DictConfig, folder: Path) -> Prepared:
    """Loads the teacher and makes the method of a job; InputError for whatever would be found wrong after long work.

    Nothing is written.
    """
    seconds: dict[str, float] = {}
    with empty_folder_goes(folder), stage("loading", seconds, cfg):
        parts = checked_parts(cfg)
        check_unchanged(cfg, folder)
        return Prepared(*parts, seconds)


def checked_parts(cfg: DictConfig) -> tuple[Any, Any, tuple[list[str], list[str] | None]]:
    """Teacher, method and prompts."""
    import hydra
    import torch

    from common.diffusion.noise_schedule import check_learns_from_noise
    from common.diffusion.sampling import guidance_size
    from common.models.loading import load_teacher
    from common.runtime.processes import check_shares, pick_device
    from experiments.evaluation.evaluate import check_image_size
    from experiments.evaluation.prompts import evaluation_prompts
    from experiments.shared.teacher_sound import check_sound
    from experiments.training.cached_latents import check_captions
    from experiments.training.distill_student import feature_pairs, trainer_settings

    device = pick_device(cfg.device)
    if cfg.distill.steps:
        check_shares(cfg.distill.batch_size, "distill.batch_size")
        trainer_settings(cfg, torch.device(device))
    if cfg.distill.autoencoder.steps:
        check_shares(cfg.distill.autoencoder.batch_size, "distill.autoencoder.batch_size")
    method = hydra.utils.instantiate(cfg.method, _convert_="all")
    for settings in cfg.metrics.values():
        hydra.utils.instantiate(settings)
    prompts = evaluation_prompts(cfg)
    teacher = load_teacher(cfg.teacher.path, cfg.teacher.revision, cfg.teacher.config)
    check_sound(cfg.teacher.path, cfg.task.sound, teacher.sound)
    check_image_size(cfg, teacher)
    if cfg.distill.steps:
        check_learns_from_noise(teacher.scheduler, guidance_size(teacher.denoiser) is not None)
    check_captions(cfg, teacher, hydra.utils.instantiate(cfg.task.data, split="train"))
    check_sampling(cfg, teacher)
    check_steps(cfg, method)
    check_method(cfg, teacher, method)
    if cfg.distill.steps and cfg.distill.feature_weight:
        feature_pairs(list(cfg.distill.features), teacher.denoiser, teacher.denoiser)
    return teacher.to(device), method, prompts


def check_sampling(cfg: DictConfig, teacher: Any) -> None:
    """InputError where a scheduler cannot be made of cfg.evaluation.scheduler, or has fewer steps than are asked for."""
    from common.diffusion.noise_schedule import check_noise
    from experiments.evaluation.samples import evaluation_scheduler

    wanted = {
        "calibration.steps": (teacher.scheduler, [cfg.calibration.steps]),
        "evaluation.steps": (None, [cfg.evaluation.steps]),
        "evaluation.more_steps": (None, cfg.evaluation.more_steps),
    }
    for name, (scheduler, numbers) in wanted.items():
        for steps in numbers:
            try:
                own = scheduler or evaluation_scheduler(cfg, teacher.scheduler)
                if scheduler is None:
                    check_noise("evaluation.scheduler", own)
                trained = own.config.num_train_timesteps
                if steps > trained:
                    raise InputError(f"{name}={steps}: the teacher's schedule has {trained} timesteps, which is the most.")
                type(own).from_config(own.config).set_timesteps(steps)
            except InputError:
                raise
            except Exception as error:  # each of diffusers' schedulers refuses settings in its own way
                raise InputError(f"{name}={steps}: {type(own).__name__} cannot take it: {first_line(error)}.") from error


def check_steps(cfg: DictConfig, method: Any) -> None:
    """InputError where a part would stay unpruned, because its method prunes during training and it has no steps."""
    if not method.prunes_in_training:
        return
    given = {"denoiser": ("distill.steps", cfg.distill.steps)}
    given["autoencoder"] = ("distill.autoencoder.steps", cfg.distill.autoencoder.steps)
    for part in method.pruned_parts:
        name, steps = given[part]
        if not steps:
            raise InputError(f"{name}=0: method.schedule=gradual prunes during training; give steps, or oneshot.")


def check_method(cfg: DictConfig, teacher: Any, method: Any) -> None:
    """InputError for what the method's forecast finds wrong with this teacher: a k or a ratio out of reach, say."""
    import torch

    from experiments.dry_run.job_cost import calibration_size

    with torch.device("meta"):
        twin = type(teacher.denoiser).from_config(teacher.denoiser.config)
    method.forecast(twin, calibration_size(cfg, teacher))
