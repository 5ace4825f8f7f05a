"""Stable Diffusion XL at full size on the meta device: methods to a plan, a student, and the student's own folder.

Diff-Pruning's takes minutes here: python run.py scale=paper teacher=sdxl method=diff_pruning dry_run=true goes the same way.
"""

import json
from functools import cache

import pytest
import torch
from hydra.utils import instantiate

from common.cost.macs import count_parameters
from common.models.architectures import meta_teacher
from common.pruning.forecast import CalibrationSize
from common.pruning.plan import Plan, apply_plan
from tests.test_conf import compose_config

pytestmark = pytest.mark.slow

SIZE = CalibrationSize(conditions=1, samples=1, steps=1, guidance_scale=1.0, rows=1, timesteps=1000, captioned=True)
DENSE = 2_567_463_684


@cache
def sdxl():
    return meta_teacher("sdxl").denoiser


@pytest.mark.parametrize(
    ("name", "settings", "smallest", "largest"),
    [
        ("laptop_diff", ["method.ratio=0.5"], 0.3, 0.5),
        ("ld_pruner", ["method.k=60"], 0.05, 0.95),
        ("magnitude", ["method.ratio=0.5", "method.granularity=transformer_block"], 0.48, 0.5),
        ("random_layers", ["method.ratio=0.3"], 0.4, 0.7),
        ("bk_sdm", ["method.variant=base"], 0.3, 0.9),
        ("l1_diff", [], 1, 1),
        ("dense", [], 1, 1),
    ],
)
@pytest.mark.exhaustive
def test_a_plan_and_a_student_that_carries_it(tmp_path, name, settings, smallest, largest):
    method = instantiate(compose_config("config", "scale=paper", f"method={name}", *settings).method, _convert_="all")
    plan = method.forecast(sdxl(), SIZE).plan
    Plan(plan.method, plan.edits).save(tmp_path)
    assert Plan.load(tmp_path).edits == plan.edits
    student = apply_plan(sdxl(), plan)
    assert smallest <= count_parameters(student) / DENSE <= largest
    student.save_config(tmp_path / "unet")
    with torch.device("meta"):
        again = type(student).from_config(json.loads((tmp_path / "unet" / "config.json").read_text()))
    shapes = [{key: value.shape for key, value in network.state_dict().items()} for network in (student, again)]
    assert shapes[0] == shapes[1]
    assert count_parameters(sdxl()) == DENSE
