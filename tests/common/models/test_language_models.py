"""Sana, FLUX.2-klein and Qwen-Image, whose text is a language model's: captions, samples and images as their pipelines'."""

import json
import shutil

import diffusers
import pytest
import torch
from diffusers import (
    Flux2KleinPipeline,
    UniPCMultistepScheduler,
)

from common.diffusion.latents import unscale_latents
from common.models.loading import load_teacher, read_index
from common.models.pipeline_defaults import call_options
from common.models.saving import save_student
from common.pruning.layers import list_layers
from common.pruning.plan import Plan, apply_plan
from experiments.exporting.exported_formats import loads_alone
from tests.commands import run
from tests.language_model_pipelines import CAPTIONS, Family, write, written
from tests.small_jobs import job
from tests.transformer_lora import check_lora


def test_captions_are_those_of_the_pipeline(family):
    teacher, pipeline = load_teacher(str(family.folder)), family.pipeline()
    found, none = teacher.encode_captions(CAPTIONS), teacher.null_condition()
    if family.name == "sana":
        instruction = teacher.instruction.split("\n")
        assert instruction[0].startswith("Given a user prompt") and instruction[-1] == "User Prompt: "
        states, mask, empty, empty_mask = pipeline.encode_prompt(CAPTIONS, complex_human_instruction=instruction)
        torch.testing.assert_close(found["encoder_attention_mask"], mask.float())
        torch.testing.assert_close(none["encoder_attention_mask"], empty_mask[:1].float())
        kept = mask[..., None]
    else:
        states, other = pipeline.encode_prompt(CAPTIONS, max_sequence_length=512)
        empty, _ = pipeline.encode_prompt([""], max_sequence_length=512)
        kept = torch.ones_like(states[..., :1])
        if family.name == "qwen_image":
            length = states.shape[1]
            assert found["encoder_hidden_states_mask"][:, :length].equal(other) or other is None
            assert not found["encoder_hidden_states_mask"][:, length:].any()
            assert not found["encoder_hidden_states"][:, length:].any()
            found["encoder_hidden_states"] = found["encoder_hidden_states"][:, :length]
            none["encoder_hidden_states"] = none["encoder_hidden_states"][:, : empty.shape[1]]
    torch.testing.assert_close(found["encoder_hidden_states"] * kept, states * kept, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(none["encoder_hidden_states"], empty[:1], atol=1e-5, rtol=1e-5)
    assert set(found) == set(none)


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_samples_and_images_are_those_of_the_pipeline(family, guidance_scale):
    teacher, pipeline = load_teacher(str(family.folder)), family.pipeline()
    noise = torch.randn(2, *teacher.latent_shape, generator=torch.Generator().manual_seed(7))
    ours = teacher.sample([7, 8], CAPTIONS, 4, guidance_scale, draw=lambda seeds, shape: noise)
    theirs = family.call(pipeline, CAPTIONS, guidance_scale, noise, output_type="latent")
    expected = family.unscaled(pipeline, theirs, teacher)
    torch.testing.assert_close(unscale_latents(teacher.autoencoder, ours), expected, atol=1e-4, rtol=1e-4)
    images = family.call(pipeline, CAPTIONS, guidance_scale, noise, output_type="pt")
    assert (teacher.decode_latents(ours).float() / 255 - images).abs().max() < 0.51 / 255 + 1e-4
    assert images.shape[2:] == teacher.image_size


def test_images_are_encoded_to_what_is_decoded(family):
    """Scaled as it is drawn: an autoencoder's own latents, back through the scaling, are what it encodes."""
    teacher = load_teacher(str(family.folder))
    images = torch.randint(0, 256, (2, 3, *teacher.image_size), dtype=torch.uint8)
    latents = teacher.encode_images(images)
    assert latents.shape == (2, *teacher.latent_shape)
    pixels = images.float() / 127.5 - 1
    vae = teacher.autoencoder
    with torch.no_grad():
        if family.name == "qwen_image":
            mean, std = (torch.tensor(vae.config[name]).view(1, 4, 1, 1) for name in ("latents_mean", "latents_std"))
            expected = (vae.encode(pixels[:, :, None]).latent_dist.mode()[:, :, 0] - mean) / std
        elif family.name == "sana":
            expected = vae.encode(pixels).latent * 0.41407
        else:
            expected = Flux2KleinPipeline._encode_vae_image(FluxPipe(vae), pixels, None)
            expected = Flux2KleinPipeline._unpatchify_latents(expected)
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=1e-5)


class FluxPipe:
    """As much of FLUX.2's pipeline as its encoding of images asks for."""

    _patchify_latents = staticmethod(Flux2KleinPipeline._patchify_latents)

    def __init__(self, vae):
        self.vae = vae


def test_what_a_call_has_to_be_told(family):
    teacher = load_teacher(str(family.folder))
    height, width = teacher.image_size
    binning = {"use_resolution_binning": False} if family.name == "sana" else {}
    assert call_options(read_index(family.folder), teacher) == {"height": height, "width": width, **binning}


def test_what_changes_the_states_of_text_changes_the_fingerprint(family, tmp_path):
    folder = written(family.name, tmp_path / "teacher")
    prints = {load_teacher(str(folder)).fingerprint(), load_teacher(str(family.folder)).fingerprint()}
    assert len(prints) == 1
    (folder / "tokenizer" / "chat_template.jinja").write_text("hello")
    write(folder / "tokenizer" / "tokenizer_config.json", truncation_side="left")
    assert load_teacher(str(folder)).fingerprint() not in prints


def test_an_entry_of_the_published_configuration_that_nothing_reads(tmp_path):
    folder = written("qwen_image", tmp_path / "teacher")
    write(folder / "transformer" / "config.json", pooled_projection_dim=768)
    assert load_teacher(str(folder)).latent_shape == (4, 8, 8)


def test_the_noise_levels_that_its_pipeline_asks_for(tmp_path):
    """Qwen-Image's asks for its own of every scheduler, and takes a shift's usual constants where there are none."""
    folder = written("qwen_image", tmp_path / "teacher")
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, use_dynamic_shifting=True)
    shutil.rmtree(folder / "scheduler")
    scheduler.save_pretrained(folder / "scheduler")
    write(folder / "model_index.json", scheduler=["diffusers", "UniPCMultistepScheduler"])
    family = Family("qwen_image", folder)
    teacher, pipeline = load_teacher(str(folder)), family.pipeline()
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    ours = teacher.sample([7, 8], CAPTIONS, 4, 1.0, draw=lambda seeds, shape: noise)
    theirs = family.call(pipeline, CAPTIONS, 1.0, noise, output_type="latent")
    expected = family.unscaled(pipeline, theirs, teacher)
    torch.testing.assert_close(unscale_latents(teacher.autoencoder, ours), expected, atol=1e-4, rtol=1e-4)


def test_a_lora_of_the_teacher(family, tmp_path):
    """Carried over to a student without the weights of blocks that are gone."""
    modules, site, block = {
        "sana": (["to_q", "linear_1"], "transformer_blocks.1.attn1.to_q", 2),
        "flux2_klein": (["to_q", "to_qkv_mlp_proj"], "single_transformer_blocks.1.attn.to_qkv_mlp_proj", 2),
        "qwen_image": (["to_q", "add_q_proj"], "transformer_blocks.1.attn.to_q", 2),
    }[family.name]
    check_lora(family.folder, type(family.pipeline()), modules, site, block, tmp_path)


def test_a_student_draws_without_this_project(family, tmp_path):
    teacher = load_teacher(str(family.folder))
    plan = Plan("some", tuple(layer.edit for layer in list_layers(teacher.denoiser)[1:3]))
    student = teacher.with_parts(denoiser=apply_plan(teacher.denoiser, plan))
    save_student(teacher, student, tmp_path / "student")
    found = loads_alone(tmp_path / "student", load_teacher(str(tmp_path / "student")), 4.0, 0)
    assert found["pipeline"] == type(family.pipeline()).__name__ and found["images"]["max_relative"] < 1e-3


@pytest.mark.slow
def test_a_job(family, tmp_path):
    """Scored, distilled, measured; its student draws in diffusers."""
    method, *settings = {
        "sana": ("laptop_diff", "method.ratio=0.4", "distill.feature_weight=1"),
        "flux2_klein": ("ld_pruner", "method.k=2", "method.kinds=[attention,feed_forward]"),
        "qwen_image": ("l1_diff", "method.sparsity=0.3"),
    }[family.name]
    few = ["evaluation.images=4", "evaluation.batch_size=4", "evaluation.latency_rounds=1", "distill.steps=2", "distill=bk_sdm"]
    done = run(*job("t2i", family.folder, tmp_path, *few, *settings, method=method))
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = tmp_path.glob(f"t2i/{method}/*/result.json")
    models = json.loads(path.read_text())["models"]
    assert models["distilled"]["latent_mse"] != models["pruned"]["latent_mse"]
    student = diffusers.DiffusionPipeline.from_pretrained(path.parent / "student", trust_remote_code=True)
    assert type(student) is type(family.pipeline())
    latents = family.call(student, ["a cat"], 1.0, output_type="latent")
    assert latents.isfinite().all()
