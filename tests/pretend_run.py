"""run.py with jobs that take no time: python -m tests.pretend_run -m method.k=4,8 (for the tests of sweeps).

A job with k=13 fails in a way nobody foresaw, one with k=999 is bad input, and one with k=21 ends when there is a file
<outputs>/go; "scores" are shared by all.
"""

import json
import os
import time
from functools import partial
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from common.errors import InputError
from common.runtime.files import ROOT, write_json
from common.runtime.locks import locked
from experiments.job.job_folder import found_or_made
from experiments.shared.command_line import one_line_composition_errors, one_line_errors
from experiments.shared.job_id import job_settings, register_job_folder
from experiments.shared.settings import typed_settings
from experiments.sweeps.objectives import check_objectives, objectives
from experiments.sweeps.sweep import sweep_job

register_job_folder()


def figures(k: int) -> dict:
    ratio = 1 - k / 100
    return {"parameters": int(1e6 * ratio), "macs": int(2e6 * ratio), "fd_effnet": 1000.0 + k, "latency": {"ratio": ratio}}


def pretend_job(cfg: DictConfig) -> dict:
    folder = Path(HydraConfig.get().runtime.output_dir)
    return found_or_made(folder, partial(find_row, folder), lambda: None, partial(new_row, cfg, folder))


def find_row(folder: Path) -> dict | None:
    path = folder / "result.json"
    if not path.is_file():
        return None
    print(f"This job is done: {path}")
    return json.loads(path.read_text())


def new_row(cfg: DictConfig, folder: Path) -> dict:
    scores = Path(cfg.outputs) / "cache" / "scores.json"
    with locked(scores.with_suffix(".lock"), "scores"):
        if not scores.is_file():
            time.sleep(0.3)
            with open(Path(cfg.outputs) / "scored.log", "a") as log:
                log.write(f"{os.getpid()}\n")
            write_json(scores, {})
    k = cfg.method.k
    if k == 13:
        raise RuntimeError("out of luck")
    if k == 999:
        raise InputError("method.k=999 is too large")
    while k == 21 and not (Path(cfg.outputs) / "go").exists():
        time.sleep(0.01)
    row = {
        "settings": job_settings(cfg),
        "command": f"python run.py method.k={k}",
        "choices": {"method": "ld_pruner", "distill": "none"},
        "models": {"real": {"fd_effnet": 900.0}, "teacher": figures(0), "pruned": figures(k)},
        "plan": [{"site": "a"}] * k,
        "protocol": {"images": 16, "steps": 2},
    }
    write_json(folder / "result.json", row)
    return row


@hydra.main(version_base="1.3", config_path=str(ROOT / "conf"), config_name="config")
@one_line_errors
@sweep_job
def main(cfg: DictConfig) -> float | tuple[float, ...]:
    settings = typed_settings(cfg)
    check_objectives(settings)
    return objectives(settings.objectives, pretend_job(cfg))


if __name__ == "__main__":
    with one_line_composition_errors():
        main()
