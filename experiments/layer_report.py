"""What each layer of a denoiser does: how much its output changes when that layer alone is removed.

    python -m experiments.layer_report task=t2i                               the shipped teacher
    python -m experiments.layer_report task=uig teacher.path=/folder/of/a/teacher

E || eps(without the layer) - eps ||^2 / E || eps ||^2 on training images with noise on them, timesteps spread evenly. A layer
below DEAD changes the output by less than a hundredth of its deviation: whatever removes it does well.
"""

import hydra
from omegaconf import DictConfig

from experiments.shared.command_line import one_line_composition_errors, one_line_errors
from experiments.shared.job_id import register_job_folder

register_job_folder()


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
@one_line_errors
def main(cfg: DictConfig) -> None:
    from experiments.evaluation.layer_effects import layers_of, report
    from experiments.shared.job import Job

    job = Job(cfg)
    print(report(job.teacher.denoiser, layers_of(job.teacher, job.data("train"))))


if __name__ == "__main__":
    with one_line_composition_errors():
        main()
