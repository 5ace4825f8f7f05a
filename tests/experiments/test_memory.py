"""Memory that runs out is told in one line, with the settings that help."""

import pytest
import torch
from hydra import compose, initialize_config_dir

from common.errors import InputError
from common.files import ROOT
from experiments.jobs import register_job_folder
from experiments.memory import memory_advice
from experiments.pipeline import stage


def settings(*overrides):
    register_job_folder()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", [*overrides])


def exhaust():
    """What a CPU without that much memory raises, by PyTorch itself."""
    torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("scoring", ["method=ld_pruner"], "lower one of method.rows=128, method.screen_rows=16, evaluation.batch_size=64"),
        ("scoring", ["method=laptop_diff"], "lower one of method.batch_size=32, method.copies=4, evaluation.batch_size=64"),
        (
            "distilling",
            [],
            "distill.batch_size=32 (with distill.accumulate=1 as much larger), distill.gradient_checkpointing=false",
        ),
        ("distilling", ["distill=none"], "take a device with more"),
        ("measuring", [], "lower one of evaluation.batch_size=64, evaluation.latency_batch=4"),
        ("loading", [], "take a device with more"),
    ],
)
def test_each_stage_names_its_settings(name, overrides, expected):
    with pytest.raises(InputError) as told, stage(name, {}, settings(*overrides)):
        exhaust()
    assert f"out of memory while {name}" in str(told.value)
    assert expected in str(told.value)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_every_kind_of_exhaustion_is_told(error):
    with pytest.raises(InputError, match="out of memory while measuring"), memory_advice("measuring", settings()):
        raise error


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes differ"), memory_advice("scoring", settings()):
        raise RuntimeError("shapes differ")
