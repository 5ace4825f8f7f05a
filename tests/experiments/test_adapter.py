"""A teacher's LoRA, IP-Adapter and ControlNet for its student, from the command line."""

import json
import sys

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import InputError
from common.export.controlnet import residuals_for
from common.export.ip_adapter import attentions_of, original_path
from common.models.loading import load_denoiser, load_teacher
from common.models.saving import save_student
from common.pruning.plan import Edit, Plan, apply_plan
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


def ip_adapter_of(folder, target, **shapes):
    """A file of random weights as h94's IP-Adapter-FaceID, which has a LoRA of every attention besides."""
    generator = torch.Generator().manual_seed(4)
    attentions, width = attentions_of(load_denoiser(folder)), 12

    def drawn(*shape):
        return torch.randn(*shape, generator=generator)

    weights = {"image_proj.proj.weight": drawn(4 * 16, width), "image_proj.proj.bias": drawn(4 * 16)}
    weights |= {"image_proj.norm.weight": drawn(16), "image_proj.norm.bias": drawn(16)}
    cross = [name for name in attentions if name.endswith("attn2")]
    for place, name in enumerate(cross):
        for key in ("to_k_ip", "to_v_ip"):
            shape = shapes.get(name, attentions[name].to_k.weight.shape)
            weights[f"ip_adapter.{2 * place + 1}.{key}.weight"] = drawn(*shape)
    for place, attention in enumerate(attentions.values()):
        for key in ("to_q", "to_k", "to_v", "to_out"):
            layer = attention.to_out[0] if key == "to_out" else getattr(attention, key)
            weights[f"ip_adapter.{place}.{key}_lora.down.weight"] = drawn(2, layer.weight.shape[1])
            weights[f"ip_adapter.{place}.{key}_lora.up.weight"] = drawn(layer.weight.shape[0], 2)
    save_file(weights, target)


def without_some_attentions(folder, job, kind):
    """A job whose student lacks whole transformers, single cross-attentions, or layers that are counted anew."""
    make_job(job, folder, kind if kind == "bk_sdm" else "laptop_diff")
    teacher = load_teacher(str(folder))
    plan = plan_of(kind, teacher.denoiser) if kind == "bk_sdm" else Plan(kind, ATTENTIONS_GONE)
    if kind != "bk_sdm":
        save_student(teacher, teacher.with_parts(denoiser=apply_plan(teacher.denoiser, plan)), job / "student")
    plan.save(job / "plan")
    row = json.loads((job / "result.json").read_text())
    row["settings"]["teacher"]["path"] = str(folder)
    (job / "result.json").write_text(json.dumps(row))
    return plan


ATTENTIONS_GONE = (
    Edit("down_blocks.0.attentions.1", "identity"),
    Edit("down_blocks.1.attentions.0.transformer_blocks.0.attn2", "zero"),
    Edit("up_blocks.1.attentions.0.transformer_blocks.0.attn1", "zero"),
)


@pytest.mark.parametrize("kind", ["bk_sdm", "laptop_diff"])
def test_each_attention_gets_its_own_of_an_ip_adapter(four_level_teacher_folder, tmp_path, monkeypatch, capsys, kind):
    """As diffusers loads the same file into the teacher."""
    job, file, out = tmp_path / "job", tmp_path / "ip.safetensors", tmp_path / "of_student.safetensors"
    plan = without_some_attentions(four_level_teacher_folder, job, kind)
    ip_adapter_of(four_level_teacher_folder, file)
    assert call(monkeypatch, job, "--ip-adapter", file, "--out", out) == 0
    told = " ".join(capsys.readouterr().out.split())
    pipelines = {}
    for who, folder, weights in (("teacher", four_level_teacher_folder, file), ("student", job / "student", out)):
        pipelines[who] = diffusers.DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
        pipelines[who].load_ip_adapter(str(tmp_path), subfolder="", weight_name=weights.name, image_encoder_folder=None)
    teacher, student = (pipelines[who].unet for who in ("teacher", "student"))
    seen = 0
    for name, processor in student.attn_processors.items():
        if hasattr(processor, "to_k_ip"):
            theirs = teacher.attn_processors[original_path(name, plan.sources)]
            assert torch.equal(processor.to_k_ip[0].weight, theirs.to_k_ip[0].weight)
            seen += 1
        attention = name.removesuffix(".processor")
        mine, other = student.get_submodule(attention).to_q, teacher.get_submodule(original_path(attention, plan.sources)).to_q
        assert torch.equal(mine.lora_A.faceid_0.weight, other.lora_A.faceid_0.weight)
    whole = len(teacher.attn_processors)
    assert 0 < seen < whole // 2 and f"{len(student.attn_processors)} of {whole} attentions" in told and "is gone" in told


@pytest.mark.parametrize("kind", ["bk_sdm", "laptop_diff"])
def test_residuals_of_a_controlnet(four_level_teacher_folder, tmp_path, monkeypatch, capsys, kind):
    job, folder, out = tmp_path / "job", tmp_path / "controlnet", tmp_path / "of_student"
    without_some_attentions(four_level_teacher_folder, job, kind)
    torch.manual_seed(0)
    theirs = diffusers.ControlNetModel.from_unet(
        load_denoiser(four_level_teacher_folder), conditioning_embedding_out_channels=(4, 4, 8, 8)
    )
    for parameter in theirs.parameters():  # its last convolutions begin at zero
        torch.nn.init.normal_(parameter, std=0.1)
    theirs.save_pretrained(folder)
    assert call(monkeypatch, job, "--controlnet", folder, "--out", out) == 0
    told = " ".join(capsys.readouterr().out.split())
    if kind == "laptop_diff":
        assert "12 of 12 residuals" in told and "fits as it is" in told and not out.exists()
        loaded = theirs
    else:
        assert "8 of 12 residuals" in told and "down_blocks.0.resnets.1 its skip connection is gone" in told
        loaded = diffusers.AutoModel.from_pretrained(str(out), trust_remote_code=True)
        inputs = torch.randn(1, 4, 4, 4), 5, torch.randn(1, 12, 16), torch.rand(1, 3, 32, 32)
        whole, middle = theirs(*inputs, return_dict=False)
        some, same = loaded(*inputs, return_dict=False)
        assert torch.equal(middle, same) and len(some) == 8
        assert all(torch.equal(mine, whole[number]) for mine, number in zip(some, (0, 1, 3, 4, 6, 7, 9, 10), strict=True))
    parts = diffusers.DiffusionPipeline.from_pretrained(job / "student", trust_remote_code=True).components
    pipeline = diffusers.StableDiffusionControlNetPipeline(**parts, controlnet=loaded)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a red apple", torch.rand(1, 3, 32, 32), num_inference_steps=2, output_type="np", height=32, width=32)
    assert picture.images.shape == (1, 32, 32, 3)


def test_adapters_of_other_models(
    four_level_teacher_folder, tiny_teacher_folder, tiny_uig_teacher_folder, tmp_path, monkeypatch, capsys
):
    job = tmp_path / "job"
    without_some_attentions(four_level_teacher_folder, job, "laptop_diff")

    def told(*words):
        assert call(monkeypatch, job, *words) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    out = tmp_path / "out.safetensors"
    ip_adapter_of(tiny_teacher_folder, tmp_path / "other.safetensors")
    assert "is of another model" in told("--ip-adapter", tmp_path / "other.safetensors", "--out", out)
    first = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    ip_adapter_of(four_level_teacher_folder, tmp_path / "wide.safetensors", **{first: (8, 24)})
    assert f"{first} takes keys of (8, 16), those in it are of (8, 24)" in told(
        "--ip-adapter", tmp_path / "wide.safetensors", "--out", out
    )
    save_file({"a": torch.zeros(1)}, tmp_path / "none.safetensors")
    assert "holds no IP-Adapter" in told("--ip-adapter", tmp_path / "none.safetensors", "--out", out)
    assert "cannot be read" in told("--ip-adapter", tmp_path / "nowhere.safetensors", "--out", out)
    diffusers.ControlNetModel.from_unet(load_denoiser(tiny_teacher_folder)).save_pretrained(tmp_path / "other")
    assert "is of another model: its block_out_channels" in told("--controlnet", tmp_path / "other", "--out", tmp_path / "new")
    assert "cannot be read" in told("--controlnet", tmp_path / "nowhere", "--out", tmp_path / "new")
    assert "is there already" in told("--controlnet", tmp_path / "other", "--out", tmp_path / "other")
    assert not out.exists() and not (tmp_path / "new").exists()


def test_narrower_students_take_no_controlnet(four_level_teacher_folder):
    unet = load_denoiser(four_level_teacher_folder)
    student = apply_plan(unet, plan_of("diff_pruning", unet))
    with pytest.raises(InputError, match=r"the skip connection of \w[\w.]* has \d+ of its \d+ channels"):
        residuals_for(unet, student, {})


def test_bad_input(four_level_teacher_folder, tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, tmp_path / "none", "--lora", "x", "--out", tmp_path / "y.safetensors")
    assert "is no folder" in capsys.readouterr().err
    make_job(tmp_path / "job", four_level_teacher_folder, "bk_sdm")
    plan_of("bk_sdm", load_teacher(str(four_level_teacher_folder)).denoiser).save(tmp_path / "job" / "plan")
    assert call(monkeypatch, tmp_path / "job", "--lora", tmp_path / "no.safetensors", "--out", tmp_path / "y.safetensors")
    assert "cannot be read" in capsys.readouterr().err
    assert call(monkeypatch, tmp_path / "job", "--lora", tmp_path / "no.safetensors", "--out", tmp_path / "y")
    assert "ends in .safetensors" in capsys.readouterr().err and not (tmp_path / "y.safetensors").exists()
