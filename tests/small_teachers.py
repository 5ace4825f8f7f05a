"""Teachers in the layouts of diffusers' pipelines with settings out of the ordinary and a few thousand random weights."""

import json
from pathlib import Path

import torch

from tests.conftest import letters_tokenizer, small_autoencoder

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def stable_diffusion(folder, unet=None, vae=None, scheduler=None, kind="StableDiffusionPipeline", vectors=0):
    """64 x 64 pixels, latents of 4 x 8 x 8. unet, vae: entries of their configurations. vectors: of the concept <cat-toy>."""
    import diffusers

    from experiments.teacher_training.text_encoder import build_text_encoder

    torch.manual_seed(0)
    tokenizer = letters_tokenizer()
    text_encoder = build_text_encoder(tokenizer, width=16, layers=1, heads=2)
    autoencoder = small_autoencoder(**(vae or {}))
    shape = {"sample_size": 8, "block_out_channels": (8, 16, 16, 16), "cross_attention_dim": 16, "attention_head_dim": 2}
    denoiser = diffusers.UNet2DConditionModel(**{**shape, "norm_num_groups": 4, **(unet or {})})
    scheduler = scheduler or diffusers.DDIMScheduler(**NOISE, clip_sample=False, steps_offset=1)
    pipeline = getattr(diffusers, kind)(
        autoencoder, text_encoder, tokenizer, denoiser, scheduler, None, None, requires_safety_checker=False
    )
    if vectors:
        pipeline.load_textual_inversion({"<cat-toy>": torch.randn(vectors, 16)})
    pipeline.save_pretrained(folder)
    return folder


def pipeline_of(folder, **options):
    """The folder as diffusers loads it by itself."""
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def change(folder, file, **entries):
    """Changes entries of a JSON file in a folder; ... takes one out."""
    path = Path(folder, file)
    document = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({name: value for name, value in document.items() if value is not ...}))
