"""Edits applied, restored, saved and loaded, alone, in a pipeline, under EMA and without this project."""

import subprocess
import sys

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel

from common.models.loading import load_denoiser
from common.models.saving import save_student
from common.pruning.plan import Edit, Plan, apply_plan, edited
from common.pruning.pruned_denoiser import PrunedUNet2DConditionModel
from ld_pruner.initial_weights import initial_weights
from ld_pruner.operators import list_operators

pytestmark = pytest.mark.slow

SITES = {
    "identity": "down_blocks.0.attentions.1",
    "zero": "up_blocks.1.attentions.0.transformer_blocks.0.attn2",
    "shortcut": "up_blocks.2.resnets.0",
    "conv1x1": "down_blocks.1.resnets.0",
    "avg_pool": "down_blocks.0.downsamplers.0",
    "upsample": "up_blocks.0.upsamplers.0",
}


def run(unet):
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, 4, 8, 8, generator=generator)
    states = torch.randn(2, 12, 16, generator=generator)
    with torch.no_grad():
        return unet(noisy, torch.tensor([3, 700]), encoder_hidden_states=states).sample


def make_plan(unet, operations=tuple(SITES)):
    by_site = {operator.site: operator for operator in list_operators(unet)}
    edits = [Edit(SITES[name], name, by_site[SITES[name]].edit.sizes, score=1.5) for name in operations if name != "conv1x1"]
    tensors = {}
    if "conv1x1" in operations:
        edits.append(by_site[SITES["conv1x1"]].edit)
        tensors = initial_weights(unet, [by_site[SITES["conv1x1"]]], "random", None, seed=0)
    edits = [
        Edit(e.site, e.operation, {} if e.operation in ("identity", "zero", "shortcut") else e.sizes, e.score) for e in edits
    ]
    return Plan("test", tuple(edits), tensors=tensors)


@pytest.mark.parametrize("operation", SITES)
def test_each_operation_changes_the_output_and_is_undone_bit_for_bit(tiny_teacher, operation):
    unet = tiny_teacher.denoiser
    plan = make_plan(unet, (operation,))
    before, weights = run(unet), {name: value.clone() for name, value in unet.state_dict().items()}
    with edited(unet, list(plan.edits), plan.tensors):
        inside = run(unet)
    assert inside.shape == before.shape and not torch.equal(inside, before)
    assert torch.equal(run(unet), before)
    assert all(torch.equal(value, weights[name]) for name, value in unet.state_dict().items())
    student = apply_plan(unet, plan)
    assert torch.allclose(run(student), inside, atol=1e-6)
    assert sum(p.numel() for p in student.parameters()) <= sum(p.numel() for p in unet.parameters())


def test_restored_also_after_an_error(tiny_teacher):
    before = run(tiny_teacher.denoiser)
    with (
        pytest.raises(RuntimeError),
        edited(tiny_teacher.denoiser, list(make_plan(tiny_teacher.denoiser).edits[:3]), {}),
    ):
        raise RuntimeError
    assert torch.equal(run(tiny_teacher.denoiser), before)


def test_student_shares_no_weights_with_the_teacher(tiny_teacher):
    student = apply_plan(tiny_teacher.denoiser, make_plan(tiny_teacher.denoiser))
    before = run(tiny_teacher.denoiser)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    assert torch.equal(run(tiny_teacher.denoiser), before)


def test_save_load_save_load_gives_equal_outputs(tiny_teacher, tmp_path):
    student = apply_plan(tiny_teacher.denoiser, make_plan(tiny_teacher.denoiser))
    expected = run(student)
    student.save_pretrained(tmp_path / "once")
    once = load_denoiser(tmp_path / "once")
    assert isinstance(once, PrunedUNet2DConditionModel) and torch.equal(run(once), expected)
    once.save_pretrained(tmp_path / "twice")
    assert torch.equal(run(load_denoiser(tmp_path / "twice")), expected)
    assert Plan.from_dict(once.config.plan).edits == make_plan(tiny_teacher.denoiser).edits


def test_round_trip_under_ema(tiny_teacher, tmp_path):
    student = apply_plan(tiny_teacher.denoiser, make_plan(tiny_teacher.denoiser))
    ema = EMAModel(student.parameters(), model_cls=PrunedUNet2DConditionModel, model_config=student.config)
    ema.save_pretrained(tmp_path / "ema")
    again = EMAModel.from_pretrained(tmp_path / "ema", PrunedUNet2DConditionModel)
    target = apply_plan(tiny_teacher.denoiser, make_plan(tiny_teacher.denoiser))
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.zero_()
    again.copy_to(target.parameters())
    assert torch.equal(run(target), run(student))


def test_a_pipeline_loader_that_does_not_know_the_class_fails_loudly(tiny_teacher, tmp_path):
    student = apply_plan(tiny_teacher.denoiser, make_plan(tiny_teacher.denoiser))
    save_student(tiny_teacher, tiny_teacher.with_parts(denoiser=student), tmp_path / "student")
    with pytest.raises((ValueError, ImportError, AttributeError), match=r"pruned_denoiser|trust_remote_code"):
        DiffusionPipeline.from_pretrained(tmp_path / "student", local_files_only=True)


@pytest.mark.exhaustive
def test_export_draws_the_same_without_this_project(tiny_teacher, tmp_path):
    student = apply_plan(tiny_teacher.denoiser, make_plan(tiny_teacher.denoiser))
    save_student(tiny_teacher, tiny_teacher.with_parts(denoiser=student), tmp_path / "student")
    script = f"""
import sys, torch

sys.modules["torchvision"] = None  # as where it is not installed: PyPI's cannot be imported beside a PyTorch for CPUs

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("common", "experiments", "ld_pruner"):
            raise ImportError(name)

sys.meta_path.insert(0, Absent())
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({str(tmp_path / "student")!r}, trust_remote_code=True)
g = torch.Generator().manual_seed(0)
noisy, states = torch.randn(2, 4, 8, 8, generator=g), torch.randn(2, 12, 16, generator=g)
with torch.no_grad():
    out = pipe.unet(noisy, torch.tensor([3, 700]), encoder_hidden_states=states).sample
torch.save(out, {str(tmp_path / "out.pt")!r})
assert not {{"common", "experiments", "ld_pruner"}} & {{name.split(".")[0] for name in sys.modules}}
"""
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    saved = load_denoiser(tmp_path / "student")
    assert torch.allclose(torch.load(tmp_path / "out.pt"), run(saved), atol=1e-6)


def test_plan_json_round_trip_and_damage(tiny_teacher, tmp_path):
    plan = make_plan(tiny_teacher.denoiser)
    assert Plan.from_json(plan.to_json()) == plan
    plan.save(tmp_path)
    loaded = Plan.load(tmp_path)
    assert loaded == plan and all(torch.equal(loaded.tensors[name], value) for name, value in plan.tensors.items())
    with pytest.raises(ValueError, match="not a plan"):
        Plan.from_json(plan.to_json()[:-20])


def test_bad_plans_name_what_is_wrong(tiny_teacher):
    with pytest.raises(ValueError, match="down_blocks.9"):
        apply_plan(tiny_teacher.denoiser, Plan("test", (Edit("down_blocks.9", "identity"),)))
    plan = make_plan(tiny_teacher.denoiser, ("conv1x1",))
    with pytest.raises(ValueError, match="no weights for down_blocks.1.resnets.0"):
        apply_plan(tiny_teacher.denoiser, Plan.from_json(plan.to_json()))
    assert isinstance(tiny_teacher.denoiser, UNet2DConditionModel)


def test_a_name_that_common_has_not_is_told():
    import common

    with pytest.raises(AttributeError, match="load_techer"):
        common.load_techer  # noqa: B018
