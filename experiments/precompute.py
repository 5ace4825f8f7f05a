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
    from common.models.loading import load_teacher
    from common.runtime.processes import pick_device
    from experiments.shared.teacher_sound import check_sound
    from experiments.shared.tensor_cache import cache_folder
    from experiments.training.cached_latents import training_rows

    teacher = load_teacher(cfg.teacher.path, cfg.teacher.revision, cfg.teacher.config).to(pick_device(cfg.device))
    check_sound(cfg.teacher.path, cfg.task.sound, teacher.sound)
    folder = cache_folder(cfg)
    rows = training_rows(cfg, teacher, folder)
    for name, column in rows.columns.items():
        print(f"{name}: {' x '.join(map(str, column.shape))}")
    print(f"rows below {folder}: a job with the same settings finds them")


if __name__ == "__main__":
    with one_line_composition_errors():
        main()
