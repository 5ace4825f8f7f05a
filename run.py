"""Runs one experiment: python run.py method=ld_pruner task=t2i (python run.py --help lists the choices)."""

import errno
import sys

import hydra
from omegaconf import DictConfig

from common.errors import InputError
from experiments.jobs import register_job_folder

register_job_folder()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> None:
    from experiments.pipeline import run_job

    try:
        run_job(cfg)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"error: no space left on the disk ({error.filename or cfg.outputs}); free some and rerun", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
