"""What a job needs before it takes its folder, and every check that needs the teacher: the last things before any work."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig

from common.cost.macs import shape_twin
from common.denoisers.unet import guidance_size
from common.diffusion.noise_schedule import check_learns_from_noise
from common.errors import InputError
from common.models.latent_diffusion import LatentDiffusion
from common.pruning.budget import forecast_within
from common.pruning.method import Method
from common.runtime.collectives import on_first
from common.runtime.processes import check_shares
from common.scoring.linear_maps import list_intervals
from common.training.block_local import check_has_blocks
from experiments.dry_run.job_cost import calibration_size
from experiments.evaluation.evaluate import check_image_size
from experiments.evaluation.real_features import check_real
from experiments.evaluation.samples import check_sampling
from experiments.shared.job import Job
from experiments.shared.job_id import check_unchanged
from experiments.shared.replacement import check_replacement
from experiments.shared.settings import Settings
from experiments.shared.teacher_sound import check_sound
from experiments.training.cached_latents import check_captions
from experiments.training.distill_student import feature_pairs, trainer_settings
from experiments.training.finetune_autoencoder import check_is_trained


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


def prepare(job: Job) -> None:
    """Loads the job's teacher and makes its method; InputError for whatever would be found wrong after long work.

    Nothing is written.
    """
    with empty_folder_goes(job.folder), job.stage("loading"):
        check_parts(job)
        check_unchanged(job.described, job.settings.outputs, HydraConfig.get().runtime.choices["method"], job.folder)


def check_parts(job: Job) -> None:
    """InputError for settings, data and teacher that do not fit each other."""
    settings, distill = job.settings, job.settings.distill
    if distill.steps:
        check_shares(distill.batch_size, "distill.batch_size")
        trainer_settings(distill, job.device)
    if distill.autoencoder.steps:
        check_shares(distill.autoencoder.batch_size, "distill.autoencoder.batch_size")
    for metric in settings.metrics.values():
        hydra.utils.instantiate(metric)
    _, method, teacher = job.prompts, job.method, job.teacher  # each tells what is wrong with it as it is made
    check_sound(settings.teacher.path, settings.task.sound, teacher.sound)
    check_image_size(job.evaluation_data.images, teacher)
    check_real(job)
    if distill.steps:
        check_learns_from_noise(teacher.scheduler, guidance_size(teacher.denoiser) is not None)
    with job.told_of_training_data():
        check_captions(settings.task.name, teacher, job.training_data)
        check_image_size(job.training_data.images, teacher)
    check_sampling(settings, teacher)
    check_steps(settings, method)
    check_is_trained(settings, method, teacher.autoencoder)
    check_forecast(settings, teacher, method)
    if 0 < distill.steps < distill.schedule.warmup:
        whole = f"{distill.steps} steps are within a warm-up of {distill.schedule.warmup}"
        told = f"distill.steps: {whole}: the learning rate does not reach its peak (distill.schedule.warmup=0)"
        on_first(lambda: print(told, file=sys.stderr, flush=True))
    if distill.steps and distill.feature_weight:
        feature_pairs(distill.features, teacher.denoiser, teacher.denoiser)
    if distill.steps and distill.local_weight:
        check_has_blocks(teacher.denoiser)


def check_steps(settings: Settings, method: Method) -> None:
    """InputError where a part would stay unpruned, because its method prunes during training and it has no steps."""
    if not method.prunes_in_training:
        return
    given = {"denoiser": ("distill.steps", settings.distill.steps)}
    given["autoencoder"] = ("distill.autoencoder.steps", settings.distill.autoencoder.steps)
    for part in method.pruned_parts:
        name, steps = given[part]
        if not steps:
            raise InputError(f"{name}=0: method.schedule=gradual prunes during training; give steps, or oneshot.")


def check_forecast(settings: Settings, teacher: LatentDiffusion, method: Method) -> None:
    """InputError for what the method's forecast finds wrong with this teacher: a k or a ratio out of reach, say."""
    check_replacement(settings, teacher.denoiser)
    found = forecast_within(method, shape_twin(teacher.denoiser), calibration_size(settings.calibration, teacher))
    if settings.replacement == "linear" and found.plan is not None:
        list_intervals(teacher.denoiser, found.plan.edits)
