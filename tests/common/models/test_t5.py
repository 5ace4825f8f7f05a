"""PixArt with its own text encoder, T5: captions as diffusers' pipeline encodes them, a job's data, and what is refused."""

import json

import pytest
import torch
from diffusers import DDIMScheduler, PixArtAlphaPipeline, PixArtSigmaPipeline, PixArtTransformer2DModel
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5Tokenizer

from common.errors import InputError
from common.models.loading import load_teacher
from tests.conftest import small_autoencoder

CAPTIONS = ["  A Red apple ", "", "a house with a very long description " * 20]


def write_pixart_with_t5(folder, kind=PixArtSigmaPipeline):
    """A pipeline in PixArt's layout, with noise to be predicted and a variance beside it, as the hub's."""
    torch.manual_seed(0)
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -2.0),
        *((letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz"),
    ]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)
    settings = {"num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16, "patch_size": 2}
    settings |= {"sample_size": 8, "in_channels": 4, "out_channels": 8, "caption_channels": 24}
    encoder = T5EncoderModel(T5Config(vocab_size=64, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3))
    kind(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=small_autoencoder(),
        transformer=PixArtTransformer2DModel(**settings),
        scheduler=DDIMScheduler(clip_sample=False),
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("kind", "tokens"), [(PixArtSigmaPipeline, 300), (PixArtAlphaPipeline, 120)])
def test_captions_are_those_of_the_pipeline(tmp_path, kind, tokens):
    teacher = load_teacher(str(write_pixart_with_t5(tmp_path, kind)))
    found = teacher.encode_captions(CAPTIONS)
    assert (
        found["encoder_hidden_states"].shape == (3, tokens, 24) and found["encoder_attention_mask"].sum(1).unique().numel() == 3
    )
    pipeline = kind.from_pretrained(tmp_path)
    states, mask, empty, _ = pipeline.encode_prompt(CAPTIONS, clean_caption=False, max_sequence_length=tokens)
    assert torch.allclose(found["encoder_hidden_states"], states, atol=1e-5)
    assert torch.equal(found["encoder_attention_mask"].bool(), mask.bool())
    assert torch.allclose(teacher.null_condition()["encoder_hidden_states"], empty[:1], atol=1e-5)


def test_samples_are_those_of_the_pipeline(tmp_path):
    """Classifier-free guidance, and the learned variance left out."""
    teacher = load_teacher(str(write_pixart_with_t5(tmp_path)))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    ours = teacher.sample([7], [" A cat"], 3, 3.0, draw=lambda seeds, shape: noise)
    pipeline = PixArtSigmaPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    options = {"output_type": "latent", "use_resolution_binning": False, "clean_caption": False, "guidance_scale": 3.0}
    theirs = pipeline("a cat", latents=noise, num_inference_steps=3, height=64, width=64, **options).images
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_what_does_not_fit_is_told(tmp_path):
    folder = write_pixart_with_t5(tmp_path / "wide")
    config = json.loads((folder / "text_encoder" / "config.json").read_text())
    (folder / "text_encoder" / "config.json").write_text(json.dumps(config | {"something_new": 3}))
    with pytest.raises(InputError, match="sets something_new=3"):
        load_teacher(str(folder))
    folder = write_pixart_with_t5(tmp_path / "other")
    projected = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32}
    config = CLIPTextModelWithProjection.config_class(**projected, vocab_size=64, projection_dim=8, max_position_embeddings=512)
    CLIPTextModelWithProjection(config).save_pretrained(folder / "text_encoder")
    index = json.loads((folder / "model_index.json").read_text())
    index["text_encoder"] = ["transformers", "CLIPTextModelWithProjection"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="T5EncoderModel or CLIPTextModel are honoured"):
        load_teacher(str(folder))
