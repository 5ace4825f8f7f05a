"""Hydra's launchers take the settings with which the README starts jobs of several processes."""

import pytest
from hydra import compose, initialize_config_dir

from common.runtime.files import ROOT
from experiments.shared.job_id import register_job_folder

pytestmark = pytest.mark.slow


def test_a_job_over_two_nodes_of_slurm():
    register_job_folder()
    wanted = {"nodes": 2, "tasks_per_node": 8, "gpus_per_node": 8, "timeout_min": 2880, "max_num_timeout": 5}
    overrides = [f"hydra.launcher.{name}={value}" for name, value in wanted.items()]
    overrides += ["hydra/launcher=submitit_slurm", 'hydra.launcher.setup=["export SLURM_KILL_BAD_EXIT=1"]']
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        launcher = compose("config", overrides, return_hydra_config=True).hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert {name: launcher[name] for name in wanted} == wanted
    assert launcher.setup == ["export SLURM_KILL_BAD_EXIT=1"]
