"""One file in the layout of Stable Diffusion's own code, against diffusers' own reading of it."""

import json

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from baselines.bk_sdm import build_student
from common.errors import InputError
from common.export.original_layout import check_expressible, original_weights, unet_names, write_single_file
from common.models.architectures import meta_teacher
from common.models.loading import load_teacher
from common.models.saving import save_student
from common.models.single_file import whole_networks
from common.pruning.plan import Edit, Plan, apply_plan


def read_back(folder, path):
    index = json.loads((folder / "model_index.json").read_text())
    with whole_networks(path):
        return getattr(diffusers, index["_class_name"]).from_single_file(
            str(path), config=str(folder), local_files_only=True, low_cpu_mem_usage=False
        )


def check_round_trip(teacher, folder, tmp_path):
    path = tmp_path / "model.safetensors"
    write_single_file(teacher, path, torch.float32)
    read = read_back(folder, path)
    for name, network in (("unet", teacher.denoiser), ("vae", teacher.autoencoder), ("text_encoder", teacher.text_encoder)):
        theirs, ours = getattr(read, name).state_dict(), network.state_dict()
        assert theirs.keys() == ours.keys() and all(torch.equal(theirs[key], value) for key, value in ours.items()), name
    return read


@pytest.mark.parametrize("fixture", ["four_level_teacher_folder", "tiny_sd2_folder", "tiny_sdxl_folder"])
def test_families(fixture, request, tmp_path):
    folder = request.getfixturevalue(fixture)
    teacher = load_teacher(str(folder))
    read = check_round_trip(teacher, folder, tmp_path)
    if teacher.text_encoder_2 is not None:
        theirs = read.text_encoder_2.state_dict()
        assert all(torch.equal(theirs[key], value) for key, value in teacher.text_encoder_2.state_dict().items())


def test_open_clip_alone(tiny_sd2_folder, tmp_path):
    teacher = load_teacher(str(tiny_sd2_folder))
    teacher.text_encoder.config.hidden_act = "gelu"
    assert "cond_stage_model.model.transformer.resblocks.1.attn.in_proj_bias" in original_weights(teacher, torch.float32)
    check_round_trip(teacher, tiny_sd2_folder, tmp_path)


@pytest.mark.parametrize("variant", ["base", "small", "tiny"])
def test_bk_sdm_students(variant, four_level_teacher_folder, tmp_path):
    teacher = load_teacher(str(four_level_teacher_folder))
    student = teacher.with_parts(denoiser=build_student(teacher.denoiser, variant))
    save_student(teacher, student, tmp_path / "student")
    check_round_trip(student, tmp_path / "student", tmp_path)


def test_students_that_no_other_program_can_express(four_level_teacher_folder, tiny_uig_teacher_folder):
    teacher = load_teacher(str(four_level_teacher_folder))
    plan = Plan("test", (Edit("mid_block.attentions.0", "identity"),))
    with pytest.raises(InputError, match=r"no other program expresses .*PrunedUNet.*trust_remote_code"):
        check_expressible(teacher.with_parts(denoiser=apply_plan(teacher.denoiser, plan)))
    with pytest.raises(InputError, match="takes no text"):
        check_expressible(load_teacher(str(tiny_uig_teacher_folder)))


@pytest.mark.parametrize(
    ("teacher", "count", "known"),
    [
        (
            "CompVis/stable-diffusion-v1-4",
            686,
            {"output_blocks.8.2.conv.weight": (640, 640, 3, 3), "input_blocks.3.0.op.bias": (320,)},
        ),
        (
            "stabilityai/stable-diffusion-xl-base-1.0",
            1680,
            {"label_emb.0.0.weight": (1280, 2816), "output_blocks.2.2.conv.bias": (1280,)},
        ),
    ],
)
def test_names_of_the_published_checkpoints(teacher, count, known):
    """How many tensors the published files have of their U-Nets, and shapes of some."""
    unet = meta_teacher(teacher).denoiser
    weights = unet.state_dict()
    names = unet_names(weights, unet.config.layers_per_block)
    assert len(set(names.values())) == len(weights) == count
    found = {names[name]: tuple(value.shape) for name, value in weights.items()}
    assert {name: found[name] for name in known} == known


def test_half_precision(four_level_teacher_folder, tmp_path):
    teacher = load_teacher(str(four_level_teacher_folder))
    write_single_file(teacher, tmp_path / "model.safetensors", torch.float16)
    found = load_file(tmp_path / "model.safetensors")
    assert {value.dtype for value in found.values()} == {torch.float16}
    assert found.keys() == original_weights(teacher, torch.float32).keys()
