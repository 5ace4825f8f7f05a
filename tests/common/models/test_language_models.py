"""Sana, FLUX.2-klein and Qwen-Image, whose text is a language model's: captions, samples and images as their pipelines'."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    UniPCMultistepScheduler,
)
from safetensors.torch import load_file, save_file
from transformers import (
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from common.diffusion.latents import unscale_latents
from common.errors import InputError
from common.models.architectures import write_gemma_tokenizer, write_qwen_tokenizer
from common.models.loading import load_teacher, read_index
from common.models.pipeline_defaults import call_options
from common.models.saving import save_student
from common.pruning.layers import list_layers
from common.pruning.plan import Plan, apply_plan
from experiments.exporting.exported_formats import loads_alone
from tests.commands import run
from tests.conftest import small_autoencoder
from tests.small_jobs import job
from tests.transformer_lora import check_lora

CAPTIONS = ["  A Red apple ", "a house with a very long description " * 20]
NARROW = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "intermediate_size": 16}
FAMILIES = ("sana", "flux2_klein", "qwen_image")


def write(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_sana(folder, tokenizer, **transformer):
    """Latents of 4 x 16 x 16."""
    write_gemma_tokenizer(tokenizer, {})
    settings = {"in_channels": 4, "out_channels": 4, "num_layers": 4, "num_attention_heads": 2, "attention_head_dim": 4}
    settings |= {"num_cross_attention_heads": 2, "cross_attention_head_dim": 4, "cross_attention_dim": 8, "sample_size": 16}
    kinds, widths = ("ResBlock", "ResBlock", "EfficientViTBlock"), (8, 8, 8)
    SanaPipeline(
        tokenizer=GemmaTokenizer.from_pretrained(tokenizer),
        text_encoder=Gemma2Model(Gemma2Config(hidden_size=8, num_hidden_layers=2, vocab_size=400, **NARROW)),
        transformer=SanaTransformer2DModel(**(settings | {"caption_channels": 8} | transformer)),
        vae=AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=kinds,
            decoder_block_types=kinds,
            encoder_block_out_channels=widths,
            decoder_block_out_channels=widths,
            encoder_layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            encoder_qkv_multiscales=((), (), (5,)),
            decoder_qkv_multiscales=((), (), (5,)),
            upsample_block_type="interpolate",
            downsample_block_type="conv",
            scaling_factor=0.41407,
        ),
        scheduler=DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    ).save_pretrained(folder)


def write_flux2_klein(folder, tokenizer, distilled=False, **transformer):
    """Latents of 4 x 8 x 8."""
    write_qwen_tokenizer(tokenizer, {})
    settings = {"in_channels": 16, "num_layers": 2, "num_single_layers": 3, "attention_head_dim": 16, "num_attention_heads": 2}
    settings |= {"joint_attention_dim": 24, "axes_dims_rope": (4, 4, 4, 4), "guidance_embeds": False}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKLFlux2(
        latent_channels=4, block_out_channels=(4,) * 4, layers_per_block=1, norm_num_groups=2, sample_size=64, **blocks
    )
    vae.bn.running_mean.uniform_(-1, 1)
    vae.bn.running_var.uniform_(0.5, 2)
    Flux2KleinPipeline(
        tokenizer=Qwen2Tokenizer.from_pretrained(tokenizer),
        text_encoder=Qwen3ForCausalLM(Qwen3Config(hidden_size=8, num_hidden_layers=28, vocab_size=400, **NARROW)),
        transformer=Flux2Transformer2DModel(**(settings | transformer)),
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        is_distilled=distilled,
    ).save_pretrained(folder)
    write(folder / "transformer" / "config.json", sample_size=8)


def write_qwen_image(folder, tokenizer, **transformer):
    """Latents of 4 x 8 x 8."""
    write_qwen_tokenizer(tokenizer, {})
    settings = {"in_channels": 16, "out_channels": 4, "num_layers": 4, "attention_head_dim": 16, "num_attention_heads": 2}
    settings |= {"joint_attention_dim": 16, "axes_dims_rope": (4, 6, 6)}
    kind = Qwen2_5_VLForConditionalGeneration.config_class
    text = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 400, **NARROW}
    text["rope_parameters"] = {"rope_theta": 1e6, "rope_type": "default", "mrope_section": [1, 1, 2]}
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 16}
    vae = {"base_dim": 6, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    QwenImagePipeline(
        tokenizer=Qwen2Tokenizer.from_pretrained(tokenizer),
        text_encoder=Qwen2_5_VLForConditionalGeneration(kind(text_config=text, vision_config=vision)),
        transformer=QwenImageTransformer2DModel(**(settings | transformer)),
        vae=AutoencoderKLQwenImage(**vae, latents_mean=[0.1, -0.2, 0.3, -0.4], latents_std=[1.5, 2.0, 0.5, 1.0]),
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, shift_terminal=0.02, max_shift=0.9, max_image_seq_len=8192
        ),
    ).save_pretrained(folder)
    write(folder / "transformer" / "config.json", sample_size=8)


def written(family, folder, **changes):
    torch.manual_seed(0)
    globals()[f"write_{family}"](folder, folder.parent / "tokenizer", **changes)
    return folder


@dataclass
class Family:
    """A pipeline in the layout of one, for images of 64 x 64, and how it is called."""

    name: str
    folder: Path

    def pipeline(self) -> Any:
        found = diffusers.DiffusionPipeline.from_pretrained(self.folder)
        found.set_progress_bar_config(disable=True)
        return found

    def call(self, pipeline, captions, guidance_scale, noise=None, **options):
        """What the pipeline draws, of noise (batch, 4, height, width) as this project has it."""
        if self.name == "qwen_image":
            options |= {"true_cfg_scale": guidance_scale, "negative_prompt": [""] * len(captions)}
        else:
            options["guidance_scale"] = guidance_scale
        if self.name == "sana":
            options["use_resolution_binning"] = False
        if noise is not None:
            given = {
                "sana": lambda: noise,
                "flux2_klein": lambda: pipeline._patchify_latents(noise),
                "qwen_image": lambda: pipeline._pack_latents(noise, *noise.shape),
            }
            options["latents"] = given[self.name]()
        return pipeline(prompt=captions, height=64, width=64, num_inference_steps=4, **options).images

    def unscaled(self, pipeline, latents, teacher):
        """A pipeline's output_type="latent" as what its autoencoder decodes."""
        if self.name == "qwen_image":
            latents = pipeline._unpack_latents(latents, 64, 64, 8)[:, :, 0]
        return latents if self.name == "flux2_klein" else unscale_latents(teacher.autoencoder, latents)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    return Family(request.param, written(request.param, tmp_path_factory.mktemp(request.param) / "teacher"))


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


def test_what_does_not_fit_is_told(family, tmp_path):
    width = "caption_channels" if family.name == "sana" else "joint_attention_dim"
    folder = written(family.name, tmp_path / "text", **{width: 40})
    with pytest.raises(InputError, match=f"denoiser has {width}=40"):
        load_teacher(str(folder))
    folder = written(family.name, tmp_path / "latents", in_channels=8 if family.name == "sana" else 32)
    with pytest.raises(InputError, match="the transformer has in_channels=.*, and the autoencoder's latents have 4 channels"):
        load_teacher(str(folder))
    folder = written(family.name, tmp_path / "quantised")
    write(folder / "text_encoder" / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(InputError, match=r"text_encoder/config.json sets quantization_config=.*read in float32"):
        load_teacher(str(folder))
    folder = written(family.name, tmp_path / "other")
    write(folder / "model_index.json", text_encoder=["transformers", "MistralModel"])
    with pytest.raises(InputError, match="MistralModel is not a class this project can load"):
        load_teacher(str(folder))
    write(folder / "model_index.json", text_encoder=[None, None], tokenizer=[None, None])
    with pytest.raises(InputError, match="attends to text, and there is no text_encoder"):
        load_teacher(str(folder))
    write(folder / "model_index.json", _class_name="PixArtSigmaPipeline")
    with pytest.raises(InputError, match="PixArtSigmaPipeline draws with a PixArtTransformer2DModel, and its transformer is a"):
        load_teacher(str(folder))


def test_an_autoencoder_of_another_class_or_of_other_latents_is_refused(family, tmp_path):
    folder = written(family.name, tmp_path / "teacher")
    own = load_teacher(str(folder)).autoencoder
    small_autoencoder().save_pretrained(tmp_path / "kl")
    shutil.rmtree(folder / "vae")
    shutil.copytree(tmp_path / "kl", folder / "vae")
    write(folder / "model_index.json", vae=["diffusers", "AutoencoderKL"])
    with pytest.raises(InputError, match=f"AutoencoderKL beside a .*, which goes with {type(own).__name__}"):
        load_teacher(str(folder))
    if family.name == "flux2_klein":
        own.bn.running_mean += 3
        word = "the statistics by which they are scaled"
    else:
        changes = {"scaling_factor": 2.0} if family.name == "sana" else {"latents_mean": [0.0] * 4}
        own.register_to_config(**changes)
        (word,) = changes
    own.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match=f"has other latents: {word}"):
        load_teacher(str(family.folder), vae=str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("family_name", "changes", "told"),
    [
        ("qwen_image", {"latents_mean": [1.0, 2.0, 3.0]}, "4 finite numbers are needed"),
        ("qwen_image", {"latents_std": [0.0, 1.0, 1.0, 1.0]}, "numbers above 0 are needed"),
        ("qwen_image", {"latents_mean": None, "latents_std": None}, "4 finite numbers are needed"),
        ("sana", {"scaling_factor": 0.0}, "scaling_factor=0.0"),
        ("flux2_klein", {"running_var": -1.0}, "bn.running_var has numbers below 0"),
        ("flux2_klein", {"running_mean": float("nan")}, "bn.running_mean is not finite"),
    ],
)
def test_statistics_by_which_no_latents_can_be_scaled(family_name, changes, told, tmp_path):
    folder = written(family_name, tmp_path / "teacher")
    if family_name == "flux2_klein":
        ((name, value),) = changes.items()
        path = folder / "vae" / "diffusion_pytorch_model.safetensors"
        weights = load_file(path)
        weights[f"bn.{name}"].fill_(value)
        save_file(weights, path)
    else:
        write(folder / "vae" / "config.json", **changes)
    with pytest.raises(InputError, match=told):
        load_teacher(str(folder))


def test_tokenizers_that_cannot_do_their_work_are_refused(family, tmp_path):
    folder = written(family.name, tmp_path / "teacher")
    settings = folder / "tokenizer" / "tokenizer_config.json"
    write(settings, pad_token=None)
    with pytest.raises(InputError, match="has no pad_token"):
        load_teacher(str(folder))
    folder = written(family.name, tmp_path / "again")
    template = folder / "tokenizer" / "chat_template.jinja"
    if family.name != "flux2_klein":
        return
    for text in (None, "{{ messages[0].content.nothing.at_all }}"):
        template.unlink() if text is None else template.write_text(text)
        with pytest.raises(InputError, match="makes no turn of a chat"):
            load_teacher(str(folder))


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


@pytest.mark.parametrize(("family_name", "kind"), [("sana", "AutoencoderDC"), ("qwen_image", "AutoencoderKLQwenImage")])
def test_autoencoders_that_are_not_trained(family_name, kind, tmp_path):
    folder = written(family_name, tmp_path / "teacher")
    words = job("t2i", folder, tmp_path, "method.parts=[denoiser,autoencoder]", "distill.autoencoder.steps=2", method="l1_diff")
    for more in ([], ["dry_run=true"]):
        done = run(*words, *more)
        assert done.returncode == 2 and f"are trained, and this is a {kind}" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


def test_a_distilled_teacher_is_never_guided(tmp_path):
    folder = written("flux2_klein", tmp_path / "teacher", distilled=True)
    words = job("t2i", folder, tmp_path, "method.ratio=0.4", "budget.guidance_scale=1", method="laptop_diff")
    for name in ("method.guidance_scale", "evaluation.guidance_scale"):
        done = run(*words, f"{name}=4")
        assert done.returncode == 2 and f"error: {name}=4: the teacher is distilled to few steps" in done.stderr, done.stderr


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
