"""FLUX.1 with its two text encoders, as diffusers' pipeline has them: captions, guidance, samples, images, whole jobs."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextModel, T5Config, T5EncoderModel, T5Tokenizer

from common.errors import InputError
from common.models.loading import load_teacher, read_index
from common.models.pipeline_defaults import call_options
from common.models.saving import save_student
from common.pruning.layers import list_layers
from common.pruning.plan import Plan, apply_plan
from experiments.exporting.exported_formats import loads_alone
from tests.commands import run
from tests.common.models.test_stable_diffusion_3 import PIECES
from tests.conftest import letters_tokenizer, small_autoencoder
from tests.small_jobs import job
from tests.transformer_lora import check_lora

CAPTIONS = ["  A Red apple ", "", "a house with a very long description " * 20]


def write_flux(folder, size=8, shifted=True, **transformer):
    """A pipeline in FLUX.1's layout; size: of latents, written into its configuration."""
    torch.manual_seed(0)
    tokenizer = letters_tokenizer()
    clip = {"hidden_size": 14, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 16}
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    clip |= {**ids, "vocab_size": len(tokenizer), "max_position_embeddings": 12}
    settings = {"in_channels": 16, "num_layers": 2, "num_single_layers": 3, "attention_head_dim": 16, "num_attention_heads": 2}
    settings |= {"joint_attention_dim": 24, "pooled_projection_dim": 14, "axes_dims_rope": (4, 6, 6), "guidance_embeds": True}
    FluxPipeline(
        transformer=FluxTransformer2DModel(**(settings | transformer)),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0 if shifted else 1.0, use_dynamic_shifting=shifted),
        vae=small_autoencoder(shift_factor=0.1159, scaling_factor=0.3611, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIPTextModel(CLIPTextModel.config_class(**clip)),
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(T5Config(vocab_size=64, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3)),
        tokenizer_2=T5Tokenizer(vocab=PIECES, extra_ids=0, model_max_length=512),
    ).save_pretrained(folder)
    write(folder / "transformer" / "config.json", sample_size=size)
    return folder


def write(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module", params=[True, False], ids=["told its guidance", "in four steps"])
def folder(request, tmp_path_factory):
    """Of FLUX.1-dev's kind, and of schnell's."""
    return write_flux(tmp_path_factory.mktemp("flux"), shifted=request.param, guidance_embeds=request.param)


@pytest.fixture
def pipeline(folder):
    found = FluxPipeline.from_pretrained(folder)
    found.set_progress_bar_config(disable=True)
    return found


def test_captions_are_those_of_the_pipeline(folder, pipeline):
    teacher = load_teacher(str(folder))
    found, none = teacher.encode_captions(CAPTIONS), teacher.null_condition()
    states, pooled, _ = pipeline.encode_prompt(CAPTIONS, None)
    assert found["encoder_hidden_states"].shape == (3, 512, 24) and found["pooled_projections"].shape == (3, 14)
    assert torch.allclose(found["encoder_hidden_states"], states, atol=1e-5)
    assert torch.allclose(found["pooled_projections"], pooled, atol=1e-5)
    assert torch.allclose(none["encoder_hidden_states"], states[1:2], atol=1e-5)
    if pipeline.transformer.config.guidance_embeds:  # what training and scores over data go by
        assert found["guidance"].tolist() == [3.5] * 3 and none["guidance"].tolist() == [3.5]
    else:
        assert set(found) == set(none) == {"encoder_hidden_states", "pooled_projections"}


@pytest.mark.parametrize("guidance_scale", [1.0, 6.0])
def test_samples_and_images_are_those_of_the_pipeline(folder, pipeline, guidance_scale):
    teacher = load_teacher(str(folder))
    if not pipeline.transformer.config.guidance_embeds:
        guidance_scale = 1.0  # which the pipeline does not read, and which is no second pass here
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    ours = teacher.sample([7, 8], CAPTIONS[:2], 4, guidance_scale, draw=lambda seeds, shape: noise)
    packed = FluxPipeline._pack_latents(noise, 2, 4, 8, 8)
    options = {"latents": packed, "num_inference_steps": 4, "height": 64, "width": 64, "guidance_scale": guidance_scale}
    theirs = pipeline(CAPTIONS[:2], output_type="latent", **options).images
    assert torch.allclose(ours, FluxPipeline._unpack_latents(theirs, 64, 64, 8), atol=1e-4)
    images = pipeline(CAPTIONS[:2], output_type="pt", **options).images
    assert (teacher.decode_latents(ours).float() / 255 - images).abs().max() < 0.51 / 255 + 1e-4


def test_the_guidance_scale_changes_what_is_drawn(tmp_path):
    teacher = load_teacher(str(write_flux(tmp_path)))
    weak, strong = (teacher.sample([7], CAPTIONS[:1], 2, scale) for scale in (1.0, 6.0))
    assert not torch.allclose(weak, strong, atol=1e-4)


def test_its_size_is_told_or_that_of_1024_pixels(tmp_path):
    folder = write_flux(tmp_path, size=None)
    large = load_teacher(str(folder))
    assert large.latent_shape == (4, 128, 128) and call_options(read_index(folder), large) == {}
    write(folder / "transformer" / "config.json", sample_size=[8, 12])
    wide = load_teacher(str(folder))
    assert wide.image_size == (64, 96) and call_options(read_index(folder), wide) == {"height": 64, "width": 96}
    write(folder / "transformer" / "config.json", sample_size="large")
    with pytest.raises(InputError, match=r"transformer/config.json sets sample_size='large'"):
        load_teacher(str(folder))
    write(folder / "transformer" / "config.json", sample_size=7)
    with pytest.raises(InputError, match="sample_size=7.*even"):
        load_teacher(str(folder))


def test_what_does_not_fit_is_told(tmp_path):
    folder = write_flux(tmp_path / "pooled", pooled_projection_dim=20)
    with pytest.raises(InputError, match="give 14, and the denoiser has pooled_projection_dim=20"):
        load_teacher(str(folder))
    folder = write_flux(tmp_path / "states", joint_attention_dim=32)
    with pytest.raises(InputError, match="give 24, and the denoiser has joint_attention_dim=32"):
        load_teacher(str(folder))
    folder = write_flux(tmp_path / "latents", in_channels=32)
    with pytest.raises(
        InputError, match="the transformer has in_channels=32, and the autoencoder's latents have 4 channels, 4 places of"
    ):
        load_teacher(str(folder))
    folder = write_flux(tmp_path / "patches")
    write(folder / "transformer" / "config.json", patch_size=2)
    with pytest.raises(InputError, match="sets patch_size=2"):
        load_teacher(str(folder))
    folder = write_flux(tmp_path / "nameless")
    write(folder / "model_index.json", _class_name="DiffusionPipeline")
    with pytest.raises(InputError, match="names no pipeline .* at whose guidance scale its FluxTransformer2DModel"):
        load_teacher(str(folder))
    folder = write_flux(tmp_path / "one")
    write(folder / "model_index.json", text_encoder_2=[None, None], tokenizer_2=[None, None])
    with pytest.raises(InputError, match="of the classes CLIPTextModel; CLIPTextModel, T5EncoderModel are honoured"):
        load_teacher(str(folder))


def test_a_lora_of_the_teacher(folder, tmp_path, capsys):
    """Carried over to a student without the weights of blocks that are gone."""
    check_lora(folder, FluxPipeline, ["to_q", "proj_mlp"], "single_transformer_blocks.1.proj_mlp", 2, tmp_path)
    assert "12 of 16 weights have a place" in " ".join(capsys.readouterr().out.split())


def test_a_student_draws_without_this_project(folder, tmp_path):
    teacher = load_teacher(str(folder))
    plan = Plan("some", tuple(layer.edit for layer in list_layers(teacher.denoiser)[1:4:2]))
    student = teacher.with_parts(denoiser=apply_plan(teacher.denoiser, plan))
    save_student(teacher, student, tmp_path / "student")
    found = loads_alone(tmp_path / "student", load_teacher(str(tmp_path / "student")), 4.0, 0)
    assert found["pipeline"] == "FluxPipeline" and found["images"]["max_relative"] < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("laptop_diff", ["method.ratio=0.4", "distill.feature_weight=1"]),
        ("block_influence", ["method.ratio=0.4", "method.arrangement=contiguous", "distill=block_local"]),
        ("ld_pruner", ["method.k=2", "method.kinds=[attention,feed_forward]"]),
    ],
)
def test_a_job(folder, tmp_path, method, settings):
    """Scored, distilled, measured; its student draws in diffusers."""
    few = ["evaluation.images=4", "evaluation.batch_size=4", "evaluation.latency_rounds=1", "distill.steps=2", "distill=bk_sdm"]
    done = run(*job("t2i", folder, tmp_path, *few, *settings, method=method))
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = tmp_path.glob(f"t2i/{method}/*/result.json")
    models = json.loads(path.read_text())["models"]
    assert models["distilled"]["latent_mse"] != models["pruned"]["latent_mse"]
    student = DiffusionPipeline.from_pretrained(path.parent / "student", trust_remote_code=True)
    assert type(student) is FluxPipeline and type(student.transformer).__name__ == "PrunedFluxTransformer2DModel"
    latents = student("a cat", num_inference_steps=2, height=64, width=64, output_type="latent").images
    assert latents.shape == (1, 16, 16) and latents.isfinite().all()
