"""Memory that runs out is told in one line, with the settings that help."""

import pytest
import torch
from hydra import compose, initialize_config_dir

from common.errors import InputError
from common.runtime.files import ROOT
from experiments.shared.job import Job
from experiments.shared.job_id import job_folder, register_job_folder
from experiments.shared.out_of_memory import ADVICE, DOING, GOES_ON, memory_advice, smaller
from experiments.shared.settings import typed_settings


def settings(*overrides):
    register_job_folder()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", [*overrides], return_hydra_config=True)


def exhaust():
    """What a CPU without that much memory raises, by PyTorch itself."""
    torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("scoring", ["method=ld_pruner"], "lower one of method.rows=128, method.weight_rows=16, evaluation.batch_size=64"),
        ("scoring", ["method=laptop_diff"], "lower one of method.batch_size=32, method.copies=4, evaluation.batch_size=64"),
        (
            "distilling",
            [],
            "distill.batch_size=32 (with distill.accumulate=1 as much larger), distill.gradient_checkpointing=false",
        ),
        ("distilling", ["distill=none"], "take a device with more"),
        ("measuring", [], "lower evaluation.micro_batch_size=64; the job then goes on from what is done."),
        ("measuring", ["evaluation.micro_batch_size=8"], "lower evaluation.micro_batch_size=8; the job then goes on"),
        ("encoding", [], "lower training_rows.batch_size=64; the job then goes on"),
        ("metrics", ["metrics=[fid,clip_score]"], "lower metrics.clip_score.batch_size=32; the job then goes on"),
        ("loading", [], "take a device with more"),
    ],
)
def test_each_stage_names_its_settings(name, overrides, expected):
    with pytest.raises(InputError) as told, Job(settings(*overrides)).stage(name):
        exhaust()
    assert str(told.value).startswith(f"out of memory while {DOING.get(name, name)}: ")
    assert expected in str(told.value)


@pytest.mark.parametrize("name", [name for name, advice in ADVICE.items() if advice.endswith(GOES_ON)])
def test_a_job_that_goes_on_keeps_its_name(name):
    given = settings("metrics=[clip_score]")
    for each in smaller(typed_settings(given), name):
        assert job_folder(given) == job_folder(settings("metrics=[clip_score]", f"{each.partition('=')[0]}=1"))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_every_kind_of_exhaustion_is_told(error):
    with (
        pytest.raises(InputError, match="out of memory while measuring"),
        memory_advice("measuring", typed_settings(settings())),
    ):
        raise error


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes differ"), memory_advice("scoring", typed_settings(settings())):
        raise RuntimeError("shapes differ")
