"""Students that others have published: their plans, their weights, and what they are refused for."""

import json
import os
import shutil
from inspect import signature

import pytest
import torch
from hydra.utils import instantiate
from safetensors.torch import load_file

from baselines.bk_sdm_table import plan_for
from baselines.diff_pruning import DiffPruning
from baselines.magnitude import Magnitude
from baselines.published import Published
from common.cost.macs import count_parameters
from common.errors import InputError
from common.models.architectures import meta_teacher
from common.models.loading import load_denoiser, load_teacher
from common.models.saving import load_student, save_student
from common.pruning.plan import Plan, apply_plan
from tests.conftest import publish_variant
from tests.test_conf import compose_config

pytestmark = pytest.mark.slow

WEIGHTS = "diffusion_pytorch_model.safetensors"


def published_plan(folder, teacher, calibration=None):
    return Published(str(folder)).plan(teacher.denoiser, calibration, teacher.fingerprint(), None)


@pytest.mark.parametrize("variant", ["base", "small", "tiny"])
def test_bk_sdm_s_checkpoints_are_rows_and_round_trip(tiny_teacher, tiny_teacher_folder, tiny_calibration, tmp_path, variant):
    folder = publish_variant(tiny_teacher_folder, tmp_path / "nota", variant)
    given = load_file(folder / "unet" / WEIGHTS)
    published_plan(folder, tiny_teacher, tiny_calibration).save(tmp_path / "plan")
    plan = Plan.load(tmp_path / "plan")
    assert plan.settings["variant"] == variant
    assert plan.edits == plan_for(tiny_teacher.denoiser, variant).edits
    student = apply_plan(tiny_teacher.denoiser, plan)
    assert type(student).__name__ == "UNet2DConditionModel"
    assert {name: tensor.half() for name, tensor in student.state_dict().items()}.keys() == given.keys()
    assert all(torch.equal(tensor.half(), given[name]) for name, tensor in student.state_dict().items())
    save_student(tiny_teacher, tiny_teacher.with_parts(denoiser=student), tmp_path / "student")
    saved = load_file(tmp_path / "student" / "unet" / WEIGHTS)
    assert saved.keys() == given.keys() and all(torch.equal(saved[name], given[name]) for name in given)
    loaded = load_student(tiny_teacher, tmp_path / "student").denoiser
    assert all(torch.equal(tensor, student.state_dict()[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize(
    ("row", "variant", "count"),
    [
        ("bk_sdm_base", "base", 579_384_964),
        ("bk_sdm_small", "small", 482_346_884),
        ("bk_sdm_tiny", "tiny", 323_384_964),
        ("small_sd", "base", 579_384_964),
        ("tiny_sd", "tiny", 323_384_964),
    ],
)
def test_rows_of_full_size_are_recognised(row, variant, count):
    """The teacher's configuration is of diffusers 0.2: mid_block_type, which Small changes, is one of its many defaults."""
    unet = meta_teacher("CompVis/stable-diffusion-v1-4").denoiser
    assert "mid_block_type" in unet.config["_use_default_values"]
    cfg = compose_config("config", "scale=paper", "teacher=sd14", f"preset=published/{row}")
    plan = instantiate(cfg.method).forecast(unet, None).plan
    assert plan.settings["variant"] == variant
    assert count_parameters(apply_plan(unet, plan)) == count


def without_defaults(folder, target):
    """A copy of the pipeline whose U-Net's configuration lacks all that equals diffusers' defaults, as old ones do."""
    from diffusers import UNet2DConditionModel

    shutil.copytree(folder, target)
    path = target / "unet" / "config.json"
    defaults = {name: each.default for name, each in signature(UNet2DConditionModel.__init__).parameters.items()}
    defaults = json.loads(json.dumps(defaults, default=str))
    kept = {name: value for name, value in json.loads(path.read_text()).items() if value != defaults.get(name, ...)}
    path.write_text(json.dumps(kept))
    return target


@pytest.mark.parametrize("variant", ["base", "small", "tiny"])
@pytest.mark.parametrize("old", ["teacher", "published", "both"])
def test_configurations_without_defaults_are_recognised(tiny_teacher_folder, tmp_path, variant, old):
    folder = publish_variant(tiny_teacher_folder, tmp_path / "nota", variant)
    if old != "published":
        tiny_teacher_folder = without_defaults(tiny_teacher_folder, tmp_path / "old_teacher")
    if old != "teacher":
        folder = without_defaults(folder, tmp_path / "old_nota")
    teacher = load_teacher(str(tiny_teacher_folder))
    assert bool(teacher.denoiser.config.get("_use_default_values")) == (old != "published")
    plan = published_plan(folder, teacher)
    assert plan.settings["variant"] == variant and plan.edits == plan_for(teacher.denoiser, variant).edits
    student = apply_plan(teacher.denoiser, plan).state_dict()
    given = load_denoiser(folder).state_dict()
    assert student.keys() == given.keys() and all(torch.equal(student[name], given[name]) for name in given)


def test_a_student_in_two_steps_is_measured_against_the_original(tiny_teacher, tmp_path):
    """Layers by the first step, channels of what is left by the second: edits and weights are those of the last student."""
    first = Magnitude(0.2, unit="parameters", granularity="transformer", width_changing="shortcut", exclude=()).plan(
        tiny_teacher.denoiser, None, tiny_teacher.fingerprint(), None
    )
    between = apply_plan(tiny_teacher.denoiser, first)
    channels = {"ratio": 0.4, "parameters": None, "rounding": "down", "variant": "magnitude", "threshold": 0.05}
    second = DiffPruning(**channels, every=250, rows=4, exclude=(), seed=0).plan(between, None, "the first student", None)
    last = apply_plan(between, second)
    save_student(tiny_teacher, tiny_teacher.with_parts(denoiser=last), tmp_path / "student")
    given = load_denoiser(tmp_path / "student")
    published_plan(tmp_path / "student", tiny_teacher).save(tmp_path / "plan")
    plan = Plan.load(tmp_path / "plan")
    assert {edit.operation for edit in plan.edits} > {"resize"}
    student = apply_plan(tiny_teacher.denoiser, plan)
    assert type(student) is type(given)
    found, weights = student.state_dict(), given.state_dict()
    assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)
    forecast = Published(str(tmp_path / "student")).forecast(tiny_teacher.denoiser, None)
    assert forecast.exact and forecast.plan.edits == plan.edits
    with pytest.raises(InputError, match="student of another teacher"):
        Published(str(tmp_path / "student")).plan(tiny_teacher.denoiser, None, "another", None)


def test_bk_sdm_s_checkpoint_is_a_teacher(published_folders, tmp_path):
    from diffusers import DiffusionPipeline

    teacher = load_teacher(str(published_folders["t2i"]))
    assert teacher.denoiser.config.layers_per_block == 1
    save_student(teacher, teacher, tmp_path / "student")
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "student")  # without the safety checker that the index names
    weights = load_file(published_folders["t2i"] / "unet" / WEIGHTS)
    assert all(torch.equal(tensor.half(), weights[name]) for name, tensor in pipeline.unet.state_dict().items())


def test_a_student_of_no_known_variant_has_a_plan_without_edits(tiny_teacher, tiny_teacher_folder, tmp_path):
    from diffusers import UNet2DConditionModel

    folder = publish_variant(tiny_teacher_folder, tmp_path / "other", "base")
    shutil.rmtree(folder / "unet")
    narrow = dict(tiny_teacher.denoiser.config, block_out_channels=(8, 8, 8, 8), sample_size=16)
    torch.manual_seed(6)
    UNet2DConditionModel.from_config(narrow).save_pretrained(folder / "unet")
    plan = published_plan(folder, tiny_teacher)
    assert plan.edits == () and plan.config_changes == {"block_out_channels": [8, 8, 8, 8]}
    student = apply_plan(tiny_teacher.denoiser, plan)
    assert student.config.sample_size == tiny_teacher.denoiser.config.sample_size
    noisy, states = torch.randn(1, 4, 8, 8), torch.randn(1, 12, 16)
    expected = load_denoiser(folder)(noisy, 500, states).sample
    assert torch.equal(student(noisy, 500, states).sample, expected)


def test_the_teacher_s_own_u_net_published_again(tiny_teacher, tiny_teacher_folder):
    plan = published_plan(tiny_teacher_folder, tiny_teacher)
    assert plan.edits == () and plan.config_changes == {}
    weights = tiny_teacher.denoiser.state_dict()
    found = apply_plan(tiny_teacher.denoiser, plan).state_dict()
    assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)


def test_what_fits_the_teacher_not_is_refused(tiny_teacher, tiny_calibration, tiny_teacher_folder, published_folders, tmp_path):
    from diffusers import UNet2DConditionModel

    with pytest.raises(InputError, match="holds a UNet2DModel, and the teacher's is a UNet2DConditionModel"):
        published_plan(published_folders["uig"], tiny_teacher)
    folder = publish_variant(tiny_teacher_folder, tmp_path / "wide", "base")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(scheduler.read_text())
    scheduler.write_text(json.dumps(config | {"prediction_type": "epsilon"}))
    with pytest.raises(InputError, match="its U-Net predicts 'epsilon', the teacher's 'v_prediction'"):
        published_plan(folder, tiny_teacher, tiny_calibration)
    shutil.rmtree(folder / "unet")
    UNet2DConditionModel.from_config(dict(tiny_teacher.denoiser.config, cross_attention_dim=24)).save_pretrained(
        folder / "unet"
    )
    with pytest.raises(InputError, match="its U-Net has cross_attention_dim=24, the teacher's 16"):
        published_plan(folder, tiny_teacher, tiny_calibration)
    with pytest.raises(InputError, match=r"'owner/never-there'.*method\.path"):
        Published("owner/never-there").plan(tiny_teacher.denoiser, None, "", None)
    with pytest.raises(InputError, match="There is no pipeline '/nowhere'"):
        Published("/nowhere").plan(tiny_teacher.denoiser, None, "", None)


def test_another_student_in_the_same_folder_is_another_job(published_folders, tmp_path):
    from experiments.shared.job_id import job_folder
    from tests.test_conf import compose_config

    folder = shutil.copytree(published_folders["t2i"], tmp_path / "published")
    first = job_folder(compose_config("config", "method=published", f"method.path={folder}"))
    path = folder / "unet" / WEIGHTS
    content = path.read_bytes()
    os.remove(path)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert job_folder(compose_config("config", "method=published", f"method.path={folder}")) != first
