"""Conditions against those of diffusers' own pipelines, and samples drawn with them."""

import json
import shutil

import pytest
import torch

from common.cost.macs import probe_inputs
from common.diffusion.sampling import sample_latents
from common.models.loading import load_teacher
from common.models.saving import load_student, save_student
from common.runtime.seeding import seeded_normal
from common.training.batches import TensorRows
from common.training.distillation import DenoiserTraining

CAPTIONS = ["a red apple 5, noto style", "x", "a flag of a country far away, and more than fits"]


def pipeline_of(folder):
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module", params=["tiny_sd2_folder", "tiny_sdxl_folder"])
def folder(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def sdxl(tiny_sdxl_folder):
    return load_teacher(str(tiny_sdxl_folder))


def final_latents(teacher, seeds, captions, guidance_scale=5.0, steps=4):
    return sample_latents(
        teacher.denoiser,
        teacher.scheduler,
        teacher.latent_shape,
        seeds,
        teacher.encode_captions(captions),
        teacher.null_condition(),
        steps,
        guidance_scale,
        batch_size=3,
    )


@torch.no_grad()
def test_samples_equal_those_of_the_diffusers_pipeline(folder):
    teacher, pipeline = load_teacher(str(folder)), pipeline_of(folder)
    noise = seeded_normal([5, 6, 7], teacher.latent_shape)
    expected = pipeline(CAPTIONS, latents=noise, num_inference_steps=4, guidance_scale=5.0, output_type="latent").images
    found = final_latents(teacher, [5, 6, 7], CAPTIONS)
    assert torch.allclose(found, expected, atol=1e-4 * expected.abs().max())
    assert not torch.allclose(found, final_latents(teacher, [5, 6, 7], CAPTIONS[::-1]), atol=1e-2 * expected.abs().max())


@torch.no_grad()
def test_embeddings_equal_those_of_the_diffusers_pipeline(sdxl, tiny_sdxl_folder):
    pipeline = pipeline_of(tiny_sdxl_folder)
    states, empty_states, pooled, empty_pooled = pipeline.encode_prompt(CAPTIONS, do_classifier_free_guidance=True)
    conditions, empty = sdxl.encode_captions(CAPTIONS), sdxl.null_condition()
    assert torch.equal(conditions["encoder_hidden_states"], states) and torch.equal(conditions["text_embeds"], pooled)
    assert states.shape == (3, 12, 40) and pooled.shape == (3, 12)
    assert conditions["time_ids"].tolist() == [[64, 64, 0, 0, 64, 64]] * 3
    assert not empty["encoder_hidden_states"].any() and not empty["text_embeds"].any()
    assert torch.equal(empty["encoder_hidden_states"], empty_states[:1]) and torch.equal(empty["text_embeds"], empty_pooled[:1])
    assert empty["time_ids"].tolist() == [[64, 64, 0, 0, 64, 64]]
    assert sdxl.encode_captions([""])["text_embeds"].any()  # a caption without words is not the absence of a caption


@torch.no_grad()
def test_an_empty_prompt_is_encoded_where_the_pipeline_encodes_it(tiny_sdxl_folder, tmp_path):
    folder = shutil.copytree(tiny_sdxl_folder, tmp_path / "encoded")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"force_zeros_for_empty_prompt": False}))
    _, expected, _, pooled = pipeline_of(folder).encode_prompt(["x"], do_classifier_free_guidance=True)
    empty = load_teacher(str(folder)).null_condition()
    assert torch.equal(empty["encoder_hidden_states"], expected) and torch.equal(empty["text_embeds"], pooled)


@torch.no_grad()
def test_the_u_net_s_inputs_can_be_guessed_from_its_configuration(sdxl):
    _, conditions = probe_inputs(sdxl.denoiser, sdxl.null_condition())
    assert {name: value.shape for name, value in conditions.items()} == {
        name: value.shape for name, value in sdxl.null_condition().items()
    }


def test_dropped_conditions_are_empty_in_every_column(sdxl):
    module = DenoiserTraining(
        sdxl.denoiser,
        sdxl.scheduler,
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        lambda optimizer: None,
        seed=0,
        condition_dropout=0.5,
        null_condition={name: value + 9 for name, value in sdxl.null_condition().items()},
    )
    conditions = sdxl.encode_captions(CAPTIONS)
    rows = TensorRows(latents=torch.zeros(3, *sdxl.latent_shape), **conditions)
    found = module.condition(rows.__getitems__([(0, 0), (1, 1), (2, 2)]), torch.tensor([0.4, 0.6, 0.4]))
    assert set(found) == {"encoder_hidden_states", "text_embeds", "time_ids"}
    for name, value in found.items():
        assert torch.equal(value[1], conditions[name][1])
        for row in (0, 2):
            assert torch.equal(value[row], sdxl.null_condition()[name][0] + 9)


@torch.no_grad()
def test_a_student_is_a_whole_pipeline(sdxl, tmp_path):
    from common.pruning.plan import Edit, Plan, apply_plan

    plan = Plan("test", (Edit("down_blocks.1.attentions.1", "identity"), Edit("mid_block.resnets.1", "shortcut")))
    student = sdxl.with_parts(denoiser=apply_plan(sdxl.denoiser, plan))
    save_student(sdxl, student, tmp_path / "student")
    loaded = load_student(sdxl, tmp_path / "student")
    expected = final_latents(loaded, [5, 6], CAPTIONS[:2])
    pipeline = pipeline_of(tmp_path / "student")
    assert {"text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"} <= set(pipeline.components)
    noise = seeded_normal([5, 6], sdxl.latent_shape)
    found = pipeline(CAPTIONS[:2], latents=noise, num_inference_steps=4, guidance_scale=5.0, output_type="latent").images
    assert torch.allclose(found, expected, atol=1e-4 * expected.abs().max())
    assert torch.equal(final_latents(load_teacher(str(tmp_path / "student")), [5, 6], CAPTIONS[:2]), expected)
