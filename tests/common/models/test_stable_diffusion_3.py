"""Stable Diffusion 3 with its three text encoders, as diffusers' pipeline has them: captions, samples, images, whole jobs."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5Tokenizer

from common.errors import InputError
from common.models.loading import load_teacher
from tests.commands import run
from tests.conftest import letters_tokenizer, small_autoencoder
from tests.small_jobs import job
from tests.transformer_lora import check_lora

CAPTIONS = ["  A Red apple ", "", "a house with a very long description " * 20]
PIECES = [
    ("<pad>", 0.0),
    ("</s>", 0.0),
    ("<unk>", 0.0),
    ("▁", -2.0),
    *((letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz"),
]


def clip(tokenizer, width, projection):
    settings = {"hidden_size": width, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 16}
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPTextModelWithProjection.config_class(
        **settings, **ids, vocab_size=len(tokenizer), projection_dim=projection, max_position_embeddings=12
    )
    return CLIPTextModelWithProjection(config)


def write_stable_diffusion_3(folder, t5=True, **transformer):
    """A pipeline in Stable Diffusion 3's layout, with or without its T5."""
    torch.manual_seed(0)
    tokenizers = letters_tokenizer(), letters_tokenizer(pad_token="!")
    settings = {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 4,
        "attention_head_dim": 8,
    }
    settings |= {"num_attention_heads": 2, "caption_projection_dim": 16, "joint_attention_dim": 24, "pooled_projection_dim": 14}
    settings |= {"pos_embed_max_size": 16, "dual_attention_layers": (0,), "qk_norm": "rms_norm", **transformer}
    StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(**settings),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=small_autoencoder(shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(tokenizers[0], 8, 6),
        tokenizer=tokenizers[0],
        text_encoder_2=clip(tokenizers[1], 12, 8),
        tokenizer_2=tokenizers[1],
        text_encoder_3=T5EncoderModel(T5Config(vocab_size=64, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3))
        if t5
        else None,
        tokenizer_3=T5Tokenizer(vocab=PIECES, extra_ids=0, model_max_length=512) if t5 else None,
    ).save_pretrained(folder)
    return folder


def absent(folder):
    """What diffusers wants to be told where a folder has no T5."""
    return {} if (folder / "text_encoder_3").is_dir() else {"text_encoder_3": None, "tokenizer_3": None}


@pytest.fixture(scope="module", params=[True, False], ids=["three", "without T5"])
def folder(request, tmp_path_factory):
    return write_stable_diffusion_3(tmp_path_factory.mktemp("sd3"), request.param)


@pytest.fixture
def pipeline(folder):
    found = StableDiffusion3Pipeline.from_pretrained(folder, **absent(folder))
    found.set_progress_bar_config(disable=True)
    return found


def test_captions_are_those_of_the_pipeline(folder, pipeline):
    teacher = load_teacher(str(folder))
    found, none = teacher.encode_captions(CAPTIONS), teacher.null_condition()
    states, empty, pooled, empty_pooled = pipeline.encode_prompt(CAPTIONS, None, None)
    assert found["encoder_hidden_states"].shape == (3, 12 + 256, 24) and found["pooled_projections"].shape == (3, 14)
    assert torch.allclose(found["encoder_hidden_states"], states, atol=1e-5)
    assert torch.allclose(found["pooled_projections"], pooled, atol=1e-5)
    assert torch.allclose(none["encoder_hidden_states"], empty[:1], atol=1e-5)
    assert torch.allclose(none["pooled_projections"], empty_pooled[:1], atol=1e-5)
    assert none["encoder_hidden_states"].any()  # not the zeros of XL


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_samples_and_images_are_those_of_the_pipeline(folder, pipeline, guidance_scale):
    teacher = load_teacher(str(folder))
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    ours = teacher.sample([7, 8], CAPTIONS[:2], 3, guidance_scale, draw=lambda seeds, shape: noise)
    options = {"latents": noise, "num_inference_steps": 3, "height": 64, "width": 64, "guidance_scale": guidance_scale}
    theirs = pipeline(CAPTIONS[:2], output_type="latent", **options).images
    assert torch.allclose(ours, theirs, atol=1e-4)
    images = pipeline(CAPTIONS[:2], output_type="pt", **options).images
    assert (teacher.decode_latents(ours).float() / 255 - images).abs().max() < 0.51 / 255 + 1e-4
    encoded = pipeline.vae.encode(images * 2 - 1).latent_dist.mean
    expected = (encoded - pipeline.vae.config.shift_factor) * pipeline.vae.config.scaling_factor
    assert torch.allclose(teacher.encode_images((images * 255).round().to(torch.uint8)), expected, atol=0.05)


def test_what_does_not_fit_is_told(tmp_path):
    def index_of(folder, **changes):
        path = folder / "model_index.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    folder = write_stable_diffusion_3(tmp_path / "alone")
    index_of(folder, tokenizer_3=[None, None])
    with pytest.raises(InputError, match="text_encoder_3 and tokenizer_3 go together"):
        load_teacher(str(folder))
    folder = write_stable_diffusion_3(tmp_path / "pooled", pooled_projection_dim=20)
    with pytest.raises(InputError, match=r"give 6 \+ 8, and the denoiser has pooled_projection_dim=20"):
        load_teacher(str(folder))
    folder = write_stable_diffusion_3(tmp_path / "states", joint_attention_dim=32)
    with pytest.raises(InputError, match="give 24, and the denoiser has joint_attention_dim=32"):
        load_teacher(str(folder))
    folder = write_stable_diffusion_3(tmp_path / "narrow", t5=False, joint_attention_dim=16)
    with pytest.raises(InputError, match="wider than the denoiser's joint_attention_dim=16"):
        load_teacher(str(folder))
    folder = write_stable_diffusion_3(tmp_path / "one", t5=False)
    index_of(folder, text_encoder_2=[None, None], tokenizer_2=[None, None])
    with pytest.raises(
        InputError, match="CLIPTextModelWithProjection, CLIPTextModelWithProjection, T5EncoderModel are honoured"
    ):
        load_teacher(str(folder))


def test_a_lora_of_the_teacher(folder, tmp_path, capsys):
    """Carried over to a student, whose pipeline loads the file as it is."""
    check_lora(folder, StableDiffusion3Pipeline, ["to_q", "to_out.0"], "transformer_blocks.2.attn.to_q", 1, tmp_path)
    assert "16 of 20 weights have a place" in " ".join(capsys.readouterr().out.split())  # four of block 1, which is gone


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "settings"),
    [
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
    student = DiffusionPipeline.from_pretrained(path.parent / "student", trust_remote_code=True, **absent(folder))
    assert type(student) is StableDiffusion3Pipeline and type(student.transformer).__name__ == "PrunedSD3Transformer2DModel"
    latents = student("a cat", num_inference_steps=2, height=64, width=64, output_type="latent").images
    assert latents.shape == (1, 4, 8, 8) and latents.isfinite().all()
