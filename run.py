"""Runs one experiment: python run.py method=ld_pruner task=t2i (python run.py --help lists the choices)."""

import hydra
from omegaconf import DictConfig

from experiments.command_line import one_line_errors
from experiments.jobs import register_job_folder

register_job_folder()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
@one_line_errors
def main(cfg: DictConfig) -> None:
    from experiments.pipeline import run_job

    run_job(cfg)


if __name__ == "__main__":
    main()
