"""What a sweep says of the time that it will take."""

import pytest
from hydra import compose, initialize_config_dir

from experiments.shared.job_id import register_job_folder
from experiments.sweeps.sweep import number_of_jobs, time_left
from tests.test_conf import CONF

SWEEP = {"asked": 10, "began": 1000.0}


def ended(*seconds, run="r"):
    return [{"run": run, "seconds": each} for each in seconds]


def test_jobs_one_after_the_other_and_two_at_once():
    assert time_left(SWEEP, ended(60, 120), "r", 1180.0) == "sweep: 2 of 10 jobs done, 1:30 each, about 12:00 left"
    assert time_left(SWEEP, ended(60, 120), "r", 1090.0) == "sweep: 2 of 10 jobs done, 1:30 each, about 6:00 left"


def test_jobs_that_were_there_and_those_of_another_run_do_not_count():
    records = [*ended(0.2, 0.3, 100.0), *ended(5000.0, run="before")]
    assert time_left(SWEEP, records, "r", 1100.0) == "sweep: 3 of 10 jobs done, 1:40 each, about 11:40 left"
    assert time_left(SWEEP, ended(0.2), "r", 1001.0) == "sweep: 1 of 10 jobs done"
    assert time_left({}, ended(60.0), "r", 1060.0) == time_left(SWEEP, ended(*[60.0] * 10), "r", 1600.0) == ""


@pytest.mark.parametrize(
    ("overrides", "jobs"),
    [
        (["method.k=1,2,3", "seed=range(4)"], 12),
        (["experiment=laptop_diff/ratios"], 12),
        (["experiment=laptop_diff/ratios", "method.ratio=0.5"], 3),
        (["experiment=laptop_diff/ratios", "method.ratio=0.5,0.6"], 6),
    ],
)
def test_the_number_of_jobs_is_that_of_hydras_own_sweeper(overrides, jobs):
    register_job_folder()
    swept = [word for word in overrides if "," in word or "range" in word]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [word for word in overrides if word not in swept], return_hydra_config=True)
    config.hydra.overrides.task = overrides
    assert number_of_jobs(config) == jobs
