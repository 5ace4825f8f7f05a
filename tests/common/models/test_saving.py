"""Saved students are ordinary pipelines: what a person loads draws."""

import json
import shutil

import pytest
from diffusers import (
    AutoModel,
    AutoPipelineForImage2Image,
    DiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from transformers import CLIPTextModel

from common.models.loading import load_teacher
from common.models.saving import save_student
from common.pruning.plan import Edit, Plan, apply_plan
from common.runtime.files import SHIPPED


def test_a_student_draws_as_it_is_loaded_without_a_word_on_precision(tiny_teacher_folder, tmp_path):
    """Its teacher's text encoder lies in fp16, as the shipped ones do, which transformers would load as such."""
    folder = shutil.copytree(tiny_teacher_folder, tmp_path / "teacher")
    CLIPTextModel.from_pretrained(folder / "text_encoder").half().save_pretrained(folder / "text_encoder")
    assert json.loads((folder / "text_encoder" / "config.json").read_text())["dtype"] == "float16"
    teacher = load_teacher(str(folder))
    student = teacher.with_parts(denoiser=apply_plan(teacher.denoiser, Plan("test", (Edit("mid_block", "zero"),))))
    save_student(teacher, student, tmp_path / "student")
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "student", trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    (picture,) = pipeline("a red apple", num_inference_steps=1).images
    assert picture.size == (64, 64)


def test_other_pipelines_take_a_student_by_its_parts(tiny_teacher_folder, tmp_path):
    """But for from_pipe of a pipeline class itself, which asks for the exact class of the U-Net (README)."""
    teacher = load_teacher(str(tiny_teacher_folder))
    student = teacher.with_parts(denoiser=apply_plan(teacher.denoiser, Plan("test", (Edit("mid_block", "zero"),))))
    save_student(teacher, student, tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    taken = [
        AutoPipelineForImage2Image.from_pipe(pipeline).unet,
        StableDiffusionImg2ImgPipeline(**pipeline.components).unet,
        AutoModel.from_pretrained(f"{tmp_path}/unet", trust_remote_code=True),
    ]
    assert {type(unet).__name__ for unet in taken} == {"PrunedUNet2DConditionModel"}
    with pytest.raises(ValueError, match="expected"):
        StableDiffusionImg2ImgPipeline.from_pipe(pipeline)


def test_shipped_settings_name_no_place_on_the_machine_that_wrote_them():
    files = [path for path in SHIPPED.rglob("*.json") if path.name != "tokenizer.json"]
    assert len(files) > 10
    assert [path for path in files if "_name_or_path" in (text := path.read_text()) or '"/' in text] == []


def test_a_student_that_was_saved_before_transformers_were_known_is_loaded(tiny_teacher_folder, tmp_path):
    teacher = load_teacher(str(tiny_teacher_folder))
    student = teacher.with_parts(denoiser=apply_plan(teacher.denoiser, Plan("test", (Edit("mid_block", "zero"),))))
    save_student(teacher, student, tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["unet"] == ["pruned_denoiser", "PrunedUNet2DConditionModel"]
    index["unet"][0] = "pruned_unet"
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert type(load_teacher(str(tmp_path)).denoiser).__name__ == "PrunedUNet2DConditionModel"
