"""Tiny teachers with random weights in the layouts of Stable Diffusion (t2i), LDM-4 (uig) and AudioDiffusion (uag).

Made once for all tests.
"""

import json
import os
import shutil
import tempfile
from dataclasses import replace

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["BONSAI_CACHE"] = tempfile.mkdtemp()  # nothing of a person's own is found or left
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers share the cores

import pytest
import torch

import common  # noqa: F401  # lets diffusers import torchvision


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("exhaustive"):
            item.add_marker("slow")


def letters_tokenizer(**options):
    """A CLIP tokenizer of single letters, 12 tokens long."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)}, merges=[], model_max_length=12, **options
    )


def small_autoencoder(**options):
    """A KL autoencoder from 64 x 64 images to latents of 4 x 8 x 8."""
    from diffusers import AutoencoderKL

    blocks = 4
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * blocks,
        up_block_types=["UpDecoderBlock2D"] * blocks,
        block_out_channels=[4] * blocks,
        norm_num_groups=2,
        latent_channels=4,
        layers_per_block=1,
        sample_size=64,
        **options,
    )


def write_stable_diffusion(folder, **unet):
    """A pipeline in the layout of Stable Diffusion 1, whose U-Net has the settings `unet`."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    from experiments.teacher_training.text_encoder import build_text_encoder

    torch.manual_seed(0)
    tokenizer = letters_tokenizer()
    text_encoder = build_text_encoder(tokenizer, width=16, layers=1, heads=2)
    autoencoder = small_autoencoder()
    denoiser = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
        **unet,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )
    pipeline = StableDiffusionPipeline(
        autoencoder, text_encoder, tokenizer, denoiser, scheduler, None, None, requires_safety_checker=False
    )
    pipeline.save_pretrained(folder)
    return folder


def write_pixart(folder, **transformer):
    """A pipeline in PixArt-Sigma's layout with CLIP's text encoder, which samples a flow."""
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

    from experiments.teacher_training.text_encoder import build_text_encoder

    torch.manual_seed(0)
    tokenizer = letters_tokenizer()
    settings = {"num_layers": 4, "num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16, "patch_size": 2}
    settings |= {"sample_size": 8, "in_channels": 4, "out_channels": 4, "caption_channels": 16, **transformer}
    PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=build_text_encoder(tokenizer, width=16, layers=1, heads=2),
        vae=small_autoencoder(),
        transformer=PixArtTransformer2DModel(**settings),
        scheduler=DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_dit_folder(tmp_path_factory):
    """A diffusion transformer of four blocks."""
    return write_pixart(tmp_path_factory.mktemp("teachers") / "dit")


@pytest.fixture(scope="session")
def tiny_dit(tiny_dit_folder):
    from common.models.loading import load_teacher

    return load_teacher(str(tiny_dit_folder))


@pytest.fixture(scope="session")
def four_level_teacher_folder(tmp_path_factory):
    """All 38 layers of Stable Diffusion's U-Net."""
    folder = tmp_path_factory.mktemp("teachers") / "four_levels"
    return write_stable_diffusion(folder, block_out_channels=(8, 16, 16, 16), layers_per_block=2)


@pytest.fixture(scope="session")
def tiny_teacher_folder(tmp_path_factory):
    """Every kind of layer that Stable Diffusion's U-Net has, twelve in all: a forward pass takes a third of the time."""
    return write_stable_diffusion(
        tmp_path_factory.mktemp("teachers") / "tiny",
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
    )


@pytest.fixture(scope="session")
def tiny_sd2_folder(tmp_path_factory):
    """In the layout of Stable Diffusion 2.1: a wider text encoder without its last layer, linear projections, velocity."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    from experiments.teacher_training.text_encoder import build_text_encoder

    torch.manual_seed(3)
    tokenizer = letters_tokenizer(pad_token="!")
    denoiser = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 16, 16),
        cross_attention_dim=24,
        attention_head_dim=[2, 4, 4, 4],
        use_linear_projection=True,
        upcast_attention=True,
        norm_num_groups=4,
    )
    folder = tmp_path_factory.mktemp("teachers") / "tiny_sd2"
    StableDiffusionPipeline(
        small_autoencoder(),
        build_text_encoder(tokenizer, width=24, layers=2, heads=2),
        tokenizer,
        denoiser,
        DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction"),
        None,
        None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_sdxl_folder(tmp_path_factory):
    """In the layout of Stable Diffusion XL: two text encoders, pooled text and sizes, three stages, Euler's scheduler."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModelWithProjection

    from experiments.teacher_training.text_encoder import build_text_encoder

    torch.manual_seed(4)
    tokenizer, tokenizer_2 = letters_tokenizer(), letters_tokenizer(pad_token="!")
    text_encoder = build_text_encoder(tokenizer, width=16, layers=3, heads=2)
    settings = build_text_encoder(tokenizer_2, width=24, layers=3, heads=2).config
    settings.projection_dim, settings.hidden_act = 12, "gelu"
    denoiser = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, 2, 3],
        attention_head_dim=[2, 4, 4],
        cross_attention_dim=16 + 24,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 12,
        norm_num_groups=4,
    )
    folder = tmp_path_factory.mktemp("teachers") / "tiny_sdxl"
    StableDiffusionXLPipeline(
        small_autoencoder(scaling_factor=0.13025),
        text_encoder,
        CLIPTextModelWithProjection(settings),
        tokenizer,
        tokenizer_2,
        denoiser,
        EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"
        ),
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


FOUR_LEVELS_UIG = {
    "block_out_channels": (8, 16, 16, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}
FOUR_LEVELS_UAG = {
    "block_out_channels": (8, 16, 16, 16),
    "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
}
TWO_LEVELS = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
}


def write_latent_diffusion(folder, **unet):
    """A pipeline in the layout of LDM-4, whose U-Net has the settings `unet`."""
    from diffusers import DDIMScheduler, LDMPipeline, UNet2DModel, VQModel

    torch.manual_seed(0)
    autoencoder = VQModel(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[4] * 3,
        norm_num_groups=2,
        latent_channels=3,
        num_vq_embeddings=16,
        sample_size=64,
    )
    denoiser = UNet2DModel(sample_size=16, attention_head_dim=4, norm_num_groups=4, **unet)
    LDMPipeline(vqvae=autoencoder, unet=denoiser, scheduler=DDIMScheduler(prediction_type="v_prediction")).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="session")
def tiny_uig_teacher_folder(tmp_path_factory):
    return write_latent_diffusion(tmp_path_factory.mktemp("teachers") / "tiny_uig", **FOUR_LEVELS_UIG)


@pytest.fixture(scope="session")
def two_level_uig_teacher_folder(tmp_path_factory):
    return write_latent_diffusion(tmp_path_factory.mktemp("teachers") / "two_levels_uig", **TWO_LEVELS)


def write_audio_diffusion(folder, **unet):
    """In the layout of AudioDiffusion, with a U-Net of the settings `unet`.

    With what AudioDiffusion has and this project does not load: its own pipeline class, and its spectrogram's settings.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DModel

    torch.manual_seed(0)
    autoencoder = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[4] * 4,
        norm_num_groups=2,
        latent_channels=1,
        sample_size=64,
    )
    denoiser = UNet2DModel(
        sample_size=[8, 8],
        in_channels=1,
        out_channels=1,
        attention_head_dim=4,
        norm_num_groups=4,
        **unet,
    )
    for name, part in {"vqvae": autoencoder, "unet": denoiser, "scheduler": DDIMScheduler()}.items():
        part.save_pretrained(folder / name)
    (folder / "mel").mkdir()
    settings = {"x_res": 64, "y_res": 64, "sample_rate": 16_000, "n_fft": 1024}  # of conf/teacher/small_uag.yaml
    (folder / "mel" / "mel_config.json").write_text(json.dumps({"_class_name": "Mel", **settings}))
    index = {
        "_class_name": "AudioDiffusionPipeline",
        "mel": ["audio_diffusion", "Mel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
        "vqvae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="session")
def tiny_uag_teacher_folder(tmp_path_factory):
    return write_audio_diffusion(tmp_path_factory.mktemp("teachers") / "tiny_uag", **FOUR_LEVELS_UAG)


@pytest.fixture(scope="session")
def two_level_teacher_folders(tiny_teacher_folder, two_level_uig_teacher_folder, tmp_path_factory):
    """A teacher's folder by task, with few layers of every kind."""
    audio = write_audio_diffusion(tmp_path_factory.mktemp("teachers") / "two_levels_uag", **TWO_LEVELS)
    return {"t2i": tiny_teacher_folder, "uig": two_level_uig_teacher_folder, "uag": audio}


@pytest.fixture(scope="session")
def tiny_teacher_folders(four_level_teacher_folder, tiny_uig_teacher_folder, tiny_uag_teacher_folder):
    """A teacher's folder by task, which BK-SDM's table fits."""
    return {"t2i": four_level_teacher_folder, "uig": tiny_uig_teacher_folder, "uag": tiny_uag_teacher_folder}


def publish_variant(teacher_folder, folder, variant):
    """A pipeline like `teacher_folder` with the U-Net of a BK-SDM variant, random weights in fp16, laid out as nota-ai's.

    Its index names a safety checker, which a download leaves out.
    """
    from baselines.bk_sdm_table import plan_for
    from common.models.loading import load_denoiser
    from common.pruning.plan import apply_plan

    shutil.copytree(teacher_folder, folder, ignore=shutil.ignore_patterns("unet"))
    unet = load_denoiser(teacher_folder)
    student = apply_plan(unet, plan_for(unet, variant))
    torch.manual_seed(5)
    type(student).from_config(student.config).half().save_pretrained(folder / "unet")
    index = json.loads((folder / "model_index.json").read_text())
    checker = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}
    (folder / "model_index.json").write_text(json.dumps(index | checker))
    return folder


@pytest.fixture(scope="session")
def published_folders(tiny_teacher_folders, tmp_path_factory):
    """A published student of each task's tiny teacher."""
    folder = tmp_path_factory.mktemp("published")
    return {task: publish_variant(teacher, folder / task, "base") for task, teacher in tiny_teacher_folders.items()}


@pytest.fixture
def tiny_teacher(tiny_teacher_folder):
    from common.models.loading import load_teacher

    return load_teacher(str(tiny_teacher_folder))


@pytest.fixture
def tiny_calibration(tiny_teacher):
    from common.scoring.calibration import build_calibration

    captions = ["a red apple, noto style", "a teddy bear, fluent style", "a flag of france, openmoji style"]
    return build_calibration(
        tiny_teacher.encode_captions(captions),
        tiny_teacher.null_condition(),
        tiny_teacher.latent_shape,
        tiny_teacher.scheduler,
        num_conditions=3,
        samples=2,
        steps=3,
        guidance_scale=2.0,
        seed=0,
    )


@pytest.fixture
def data_calibration(tiny_teacher, tiny_calibration):
    """With training rows and an alignment, which criteria over data look at."""
    generator = torch.Generator().manual_seed(3)
    captions = [f"thing {index}, noto style" for index in range(6)]
    rows = torch.randn(6, 4, 8, 8, generator=generator), tiny_teacher.encode_captions(captions)
    return replace(tiny_calibration, data=lambda: rows, alignment=lambda latents, chosen: latents.mean().item())
