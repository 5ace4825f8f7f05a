"""A teacher's LoRA for its student, from the command line."""

import sys

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from common.models.loading import load_teacher
from common.pruning.plan import Plan
from experiments import adapter
from tests.common.models.test_lora import lora_of
from tests.experiments.test_export import make_job
from tests.small_students import plan_of

pytestmark = pytest.mark.slow


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["adapter", *map(str, words)])
    try:
        adapter.main()
        return 0
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize("kind", ["bk_sdm", "laptop_diff"])
def test_a_file_that_the_students_pipeline_loads(four_level_teacher_folder, tmp_path, monkeypatch, capsys, kind):
    job, teacher = tmp_path / "job", load_teacher(str(four_level_teacher_folder))
    make_job(job, four_level_teacher_folder, kind)
    plan = plan_of(kind, teacher.denoiser)
    plan.save(job / "plan")
    assert Plan.load(job / "plan").edits == plan.edits
    lora_of(four_level_teacher_folder, tmp_path / "a.safetensors")
    out = tmp_path / "student.safetensors"
    assert call(monkeypatch, job, "--lora", tmp_path / "a.safetensors", "--out", out) == 0
    told = " ".join(capsys.readouterr().out.split())
    count, whole = len(load_file(out)), len(load_file(tmp_path / "a.safetensors"))
    assert f"{count} of {whole} weights have a place in the student" in told and f"{whole - count} are left out" in told
    assert "is gone" in told
    if kind == "bk_sdm":
        pipeline = diffusers.DiffusionPipeline.from_pretrained(job / "student")
        before = pipeline.unet.state_dict()["mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"].clone()
        pipeline.load_lora_weights(str(tmp_path), weight_name=out.name)
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
        after = pipeline.unet.state_dict()["mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"]
        assert not torch.equal(before, after)


def test_bad_input(four_level_teacher_folder, tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, tmp_path / "none", "--lora", "x", "--out", tmp_path / "y.safetensors")
    assert "is no folder" in capsys.readouterr().err
    make_job(tmp_path / "job", four_level_teacher_folder, "bk_sdm")
    plan_of("bk_sdm", load_teacher(str(four_level_teacher_folder)).denoiser).save(tmp_path / "job" / "plan")
    assert call(monkeypatch, tmp_path / "job", "--lora", tmp_path / "no.safetensors", "--out", tmp_path / "y.safetensors")
    assert "cannot be read" in capsys.readouterr().err
    assert call(monkeypatch, tmp_path / "job", "--lora", tmp_path / "no.safetensors", "--out", tmp_path / "y")
    assert "ends in .safetensors" in capsys.readouterr().err and not (tmp_path / "y.safetensors").exists()
