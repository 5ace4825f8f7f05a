"""Settings that are not honoured, refused in one line when a teacher is loaded; and the page that lists them."""

import json
import os
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import InputError
from common.models.honoured_settings import check_settings, class_defaults, page, table
from common.models.loading import load_denoiser, load_teacher
from common.runtime.files import ROOT
from tests.small_teachers import change

UNET, VAE, SCHEDULER, TEXT = (
    "unet/config.json",
    "vae/config.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
)
EDM = {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}


@pytest.fixture
def broken(tiny_teacher_folder, tmp_path):
    return shutil.copytree(tiny_teacher_folder, tmp_path / "broken")


def refusal(folder):
    """The one line with which a teacher is refused."""
    with pytest.raises(InputError) as caught:
        load_teacher(str(folder))
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    return str(caught.value)


def test_weights_that_are_no_file_or_a_pointer_are_told(broken):
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "a pointer of Git LFS" in refusal(broken)
    weights.unlink()
    os.mkfifo(weights)
    assert "is a pipe; a file is needed" in refusal(broken)


def test_the_page_of_the_documentation_is_the_table():
    assert (ROOT / "docs" / "teacher_settings.md").read_text() == page()


@pytest.mark.parametrize("kind", ["UNet2DConditionModel", "UNet2DModel", "AutoencoderKL", "VQModel", "schedulers"])
def test_the_table_knows_what_this_diffusers_has(kind):
    known = table()[kind]
    named = {*known["built"], *known["only"]}
    named |= {name for group in ("honoured", "irrelevant") for names in known[group] for name in names.split(", ")}
    for class_name in known["classes"]:
        assert set(class_defaults(class_name)) <= named, class_name


@pytest.mark.parametrize(
    ("file", "entries", "expected"),
    [
        (UNET, {"class_embed_type": "timestep"}, r"class_embed_type=\"timestep\".*jobs give no classes"),
        (UNET, {"num_class_embeds": 10}, "num_class_embeds=10"),
        (UNET, {"addition_embed_type": "image"}, "addition_embed_type"),
        (UNET, {"encoder_hid_dim": 32, "encoder_hid_dim_type": "image_proj"}, "encoder_hid_dim"),
        (UNET, {"time_embedding_type": "fourier"}, "time_embedding_type"),
        (UNET, {"attention_type": "gated"}, "GLIGEN"),
        (UNET, {"something_later": True}, "something_later=true, which this project does not know"),
        (UNET, {"quantization_config": {"load_in_8bit": True}}, "quantization_config"),
        (UNET, {"sample_size": None}, "tells no sample_size"),
        (UNET, {"sample_size": [8, 8, 8]}, "one or two numbers above 0"),
        (UNET, {"sample_size": 0}, "one or two numbers above 0"),
        (UNET, {"sample_size": [8]}, "one or two numbers above 0"),
        (UNET, {"norm_eps": float("nan")}, "norm_eps=nan: a finite number"),
        (UNET, {"norm_eps": -1e-5}, "norm_eps=-1e-05: a number of at least 0"),
        (UNET, {"norm_eps": "1e-5"}, 'norm_eps="1e-5", which is no number'),
        (UNET, {"flip_sin_to_cos": "yes"}, 'flip_sin_to_cos="yes", which is no true or false'),
        (UNET, {"plan": {"x": 1}}, "sets plan, which a UNet2DConditionModel does not read"),
        (UNET, {"cross_attention_dim": 24}, "size mismatch for"),
        (TEXT, {"layer_norm_eps": float("nan")}, "layer_norm_eps=nan: a finite number"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": "24"}, "model_max_length='24'; a whole number"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 1}, "model_max_length=1; a whole number"),
        (SCHEDULER, {"trained_betas": [0.1, 0.2]}, "2 trained_betas for num_train_timesteps=1000"),
        (VAE, {"scaling_factor": 0}, r"scaling_factor=0: a number from 1e-06 to 1e\+06"),
        (VAE, {"scaling_factor": 1e-300}, "scaling_factor=1e-300: a number from"),
        (VAE, {"scaling_factor": float("nan")}, "scaling_factor=nan"),
        (VAE, {"scaling_factor": float("inf")}, "scaling_factor=inf"),
        (VAE, {"shift_factor": "much"}, "shift_factor=much"),
        (VAE, {"latents_mean": [0.0] * 4}, "latents_std=None: 4 finite numbers"),
        (VAE, {"latents_mean": [0.0] * 3, "latents_std": [1.0] * 4}, "latents_mean=.*4 finite numbers"),
        (VAE, {"latents_mean": [0.0] * 4, "latents_std": [1.0, 1.0, 0.0, 1.0]}, "latents_std=.*above 0"),
        (VAE, {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4, "shift_factor": 0.1}, "both shift_factor"),
        (SCHEDULER, {"prediction_type": "flow_prediction"}, "prediction_type"),
        (SCHEDULER, {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "contradict each other"),
        (SCHEDULER, {"_class_name": "DDPMScheduler", "variance_type": "learned_range"}, "jobs learn no variances"),
        (SCHEDULER, {"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "timestep_type"),
        (SCHEDULER, {"beta_end": float("nan")}, "beta_end=nan: a finite number"),
        (SCHEDULER, {"beta_start": -0.1, "beta_schedule": "linear"}, "betas within 0 and 1"),
        (SCHEDULER, {"beta_start": 0.0, "beta_end": 0.0}, "betas within 0 and 1"),
        (SCHEDULER, {"num_train_timesteps": 0}, "scheduler"),
        (TEXT, {"use_attention_mask": True}, "use_attention_mask"),
        (TEXT, {"return_dict": False}, "return_dict"),
        (TEXT, {"something_later": 1}, "something_later=1"),
        ("model_index.json", {"controlnet": ["diffusers", "ControlNetModel"]}, "a part 'controlnet'"),
        ("model_index.json", {"requires_aesthetics_score": True}, "requires_aesthetics_score"),
        ("model_index.json", {"_class_name": "StableDiffusionLDM3DPipeline"}, "StableDiffusionLDM3DPipeline is not a class"),
        ("model_index.json", {"vae": ["diffusers", "AutoencoderTiny"]}, "AutoencoderTiny is not a class"),
        ("model_index.json", {"text_encoder": ["transformers", "UMT5EncoderModel"]}, "UMT5EncoderModel is not a class"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 99}, "model_max_length=99, the text encoder 12 places"),
    ],
)
def test_what_is_not_honoured_is_refused(broken, file, entries, expected):
    if file == SCHEDULER and "_class_name" in entries:
        change(broken, "model_index.json", scheduler=["diffusers", entries["_class_name"]])
    change(broken, file, **entries)
    assert re.search(expected, refusal(broken)), refusal(broken)


@pytest.mark.parametrize("kind", ["EDMDPMSolverMultistepScheduler", "EDMEulerScheduler", "FlowMatchHeunDiscreteScheduler"])
def test_other_noise_than_diffusion_s_is_refused_before_weights_are_read(broken, kind):
    change(broken, "model_index.json", scheduler=["diffusers", kind])
    (broken / SCHEDULER).write_text(json.dumps({"_class_name": kind}))
    (broken / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert f"{kind} is not a class this project can load; known are DDIMScheduler" in refusal(broken)


def test_null_and_diffusers_defaults_are_no_settings(broken):
    change(broken, UNET, something_later=None)
    change(broken, SCHEDULER, skip_prk_steps=True, use_karras_sigmas=False, timestep_values=None)  # of other schedulers
    change(broken, VAE, sample_size=999, force_upcast=False)
    assert load_teacher(str(broken)).latent_shape == (4, 8, 8)


def test_what_diffusers_adds_is_refused_unless_it_is_its_default(monkeypatch):
    monkeypatch.setattr("common.models.honoured_settings.class_defaults", lambda _: {"something_later": 3})
    check_settings("unet/config.json", "UNet2DModel", {"something_later": 3})
    with pytest.raises(InputError, match="something_later=4"):
        check_settings("unet/config.json", "UNet2DModel", {"something_later": 4})


def rewrite(path, changed):
    weights = load_file(path)
    save_file(changed(weights), path, metadata={"format": "pt"})


def spoilt(value):
    def change_one(weights):
        weights["conv_in.weight"][0, 0, 0, 0] = value
        return weights

    return change_one


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (spoilt(float("nan")), "conv_in.weight is not finite"),
        (spoilt(float("inf")), "conv_in.weight is not finite"),
        (lambda weights: {name: torch.zeros_like(each) for name, each in weights.items()}, "all weights are zero"),
        (lambda weights: {name: (99 * each).to(torch.int8) for name, each in weights.items()}, "is stored as I8, not as real"),
        (lambda weights: weights | {"class_embedding.weight": torch.ones(3, 3)}, "class_embedding.weight among them"),
    ],
)
def test_weights_that_cannot_be_a_network_s_are_refused(broken, changed, expected):
    rewrite(broken / "unet" / "diffusion_pytorch_model.safetensors", changed)
    assert expected in refusal(broken)
    with pytest.raises(InputError, match=expected.replace("(", r"\(")):
        load_denoiser(broken)


def test_integers_in_a_pickle_are_refused(broken):
    path = broken / "vae" / "diffusion_pytorch_model.safetensors"
    torch.save({name: (99 * each).to(torch.int8) for name, each in load_file(path).items()}, path.with_suffix(".bin"))
    path.unlink()
    assert "is stored as int8" in refusal(broken)


def test_a_denoiser_alone_is_held_against_the_table(broken):
    change(broken, UNET, class_embed_type="identity")
    with pytest.raises(InputError, match="class_embed_type"):
        load_denoiser(broken)


def test_a_dry_run_holds_a_folder_against_the_table(broken):
    from common.models.architectures import meta_teacher

    change(broken, UNET, class_embed_type="identity")
    with pytest.raises(InputError, match="class_embed_type"):
        meta_teacher(str(broken))


@pytest.mark.parametrize("name", ["sd1", "sd21_base", "sdxl", "ldm4_celebahq", "audio_diffusion", "bk_sdm_tiny"])
def test_the_papers_teachers_are_honoured(name):
    from common.models.architectures import architecture

    for library, class_name, settings in architecture(name)["parts"].values():
        check_settings(library, class_name, settings)


def test_what_old_files_hold_besides_is_known():
    """Of Stable Diffusion v1 and LDM-4, as early versions of diffusers wrote them."""
    ldm = {"beta_start": 0.0015, "beta_end": 0.0195, "clip_sample": False, "timestep_values": None, "timesteps": 1000}
    check_settings("scheduler", "DDIMScheduler", {"_class_name": "DDIMScheduler", "_diffusers_version": "0.0.4", **ldm})
    with pytest.raises(InputError, match="timesteps=500"):
        check_settings("scheduler", "DDIMScheduler", ldm | {"timesteps": 500})
    pndm = {"clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None}
    check_settings("scheduler", "PNDMScheduler", {"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", **pndm})
    text = {
        "_name_or_path": "x",
        "dropout": 0.0,
        "torch_dtype": "float32",
        "architectures": ["CLIPTextModel"],
        "layer_norm_eps": 1e-5,
    }
    check_settings("text_encoder", "CLIPTextModel", text)
