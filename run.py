"""Runs one experiment: python run.py method=ld_pruner task=t2i (python run.py --help lists the choices)."""

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.shared.command_line import one_line_composition_errors, one_line_errors
from experiments.shared.job_id import register_job_folder
from experiments.sweeps.sweep import sweep_job

register_job_folder()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
@one_line_errors
@sweep_job
def main(cfg: DictConfig) -> float | tuple[float, ...]:
    from experiments.shared.settings_check import checked

    cfg = checked(cfg)
    if cfg.dry_run:
        from experiments.dry_run.dry_run import dry_run
        from experiments.shared.settings import typed_settings

        return dry_run(typed_settings(cfg))
    from experiments.job.pipeline import run_job
    from experiments.shared.job import Job
    from experiments.sweeps.objectives import check_objectives, objectives

    job = Job(cfg, HydraConfig.get().runtime.output_dir)
    check_objectives(job.settings)  # before the long work
    return objectives(job.settings.objectives, run_job(job))


if __name__ == "__main__":
    with one_line_composition_errors():
        main()
