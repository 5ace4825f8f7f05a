"""Computes the training rows of a job ahead of it: latents and conditions of the training images, in shards.

    python -m experiments.precompute task=t2i                  # with the settings of the jobs that will use them

Started several times on the same `outputs`, on one machine or on many, the processes share the work.
"""

import hydra
from omegaconf import DictConfig

from common.runtime.progress import under_way
from experiments.shared.command_line import one_line_composition_errors, one_line_errors
from experiments.shared.job_id import register_job_folder

register_job_folder()


@hydra.main(version_base="1.3", config_path="../conf", config_name="precompute")
@one_line_errors
@under_way("training rows")
def main(cfg: DictConfig) -> None:
    from experiments.shared.job import Job
    from experiments.shared.teacher_sound import check_sound
    from experiments.training.cached_latents import training_rows

    job = Job(cfg)
    check_sound(job.settings.teacher.path, job.settings.task.sound, job.teacher.sound)
    rows = training_rows(job, job.teacher, job.cache)
    for name, column in rows.columns.items():
        print(f"{name}: {' x '.join(map(str, column.shape))}")
    print(f"rows below {job.cache}: a job with the same settings finds them")


if __name__ == "__main__":
    with one_line_composition_errors():
        main()
