"""Costs of models side by side, and when 2:4 kernels are timed."""

import pytest
import torch

from common.pruning.plan import Edit, Plan
from experiments.evaluation.measure_cost import measure_cost, semi_structured_latency
from experiments.evaluation.models import Models
from experiments.shared.job import Job
from tests.test_conf import compose_config


@pytest.mark.parametrize("precision", [32, "bf16"])
def test_figures_of_a_teacher_against_itself(tiny_teacher, precision):
    models = Models(tiny_teacher, tiny_teacher)
    protocol = [f"evaluation.{name}=2" for name in ("latency_batch", "latency_rounds")]
    job = Job(compose_config("config", *protocol, f"inference_precision={precision}"))
    rows = measure_cost(job, models, {"denoiser": Plan("dense", ())})
    assert tiny_teacher.denoiser.dtype == torch.float32  # timed is a copy
    assert rows["teacher"]["parameters"] == rows["pruned"]["parameters"] > rows["teacher"]["nonzero_parameters"] > 0
    assert rows["teacher"]["latency"]["ratio"] == 1 and rows["pruned"]["latency"]["time_reduction"] < 1
    assert "autoencoder" not in rows["teacher"] and "semi_structured" not in rows["pruned"]


def test_no_2_to_4_kernels_on_a_cpu_nor_for_other_patterns(tiny_teacher):
    inputs = torch.zeros(1, *tiny_teacher.latent_shape), torch.tensor([500])
    plan = Plan("l1_diff", (Edit("conv_in", "mask"),), settings={"pattern": "2:4"})
    assert semi_structured_latency(tiny_teacher.denoiser, plan, inputs, tiny_teacher.null_condition(), 1) == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_2_to_4_kernels_are_timed_on_a_gpu(tiny_teacher):
    teacher = tiny_teacher.to("cuda")
    inputs = torch.zeros(1, *teacher.latent_shape, device="cuda"), torch.tensor([500], device="cuda")
    for pattern, expected in (("2:4", {"semi_structured"}), (None, set())):
        plan = Plan("l1_diff", (), settings={"pattern": pattern})
        assert set(semi_structured_latency(teacher.denoiser, plan, inputs, teacher.null_condition(), 1)) == expected
