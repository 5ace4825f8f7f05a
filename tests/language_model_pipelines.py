"""Small pipelines in the layouts of Sana, FLUX.2-klein and Qwen-Image, and how each is called."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
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
)
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
from common.models.architectures import write_gemma_tokenizer, write_qwen_tokenizer

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
