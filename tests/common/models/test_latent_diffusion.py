"""Loading teachers, and the one line that bad input gets."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from common.errors import InputError
from common.models.hub import shipped_teachers
from common.models.loading import load_denoiser, load_teacher
from common.models.saving import save_student
from common.runtime.files import SHIPPED


@pytest.fixture
def broken(tiny_teacher_folder, tmp_path):
    return shutil.copytree(tiny_teacher_folder, tmp_path / "broken")


def test_a_folder_loads_as_one_thing(tiny_teacher):
    assert tiny_teacher.latent_shape == (4, 8, 8)
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    latents = tiny_teacher.encode_images(images)
    assert latents.shape == (3, 4, 8, 8)
    decoded = tiny_teacher.decode_latents(latents)
    assert decoded.shape == images.shape and decoded.dtype == torch.uint8
    assert tiny_teacher.encode_captions(["a red apple", "x"])["encoder_hidden_states"].shape == (2, 12, 16)


def test_unconditional_vq_folder_loads(tmp_path):
    from diffusers import DDIMScheduler, UNet2DModel, VQModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
    )
    vq = VQModel(
        block_out_channels=[4, 4],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        norm_num_groups=2,
        num_vq_embeddings=16,
    )
    for name, part in {"unet": unet, "vqvae": vq, "scheduler": DDIMScheduler()}.items():
        part.save_pretrained(tmp_path / name)
    index = {
        "_class_name": "LDMPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "vqvae": ["diffusers", "VQModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    teacher = load_teacher(str(tmp_path))
    assert teacher.latent_shape == (3, 8, 8) and teacher.encode_captions(["x"]) == {}
    latents = teacher.encode_images(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    assert teacher.decode_latents(latents).shape == (2, 3, 16, 16)


def test_audio_diffusion_s_layout_loads_and_is_kept(tiny_uag_teacher_folder, tmp_path):
    teacher = load_teacher(str(tiny_uag_teacher_folder))
    assert teacher.latent_shape == (1, 8, 8) and type(teacher.autoencoder).__name__ == "AutoencoderKL"
    images = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
    latents = teacher.encode_images(images)
    assert latents.shape == (2, 1, 8, 8) and teacher.decode_latents(latents).shape == images.shape
    save_student(teacher, teacher, tmp_path / "student")
    for name in ("model_index.json", "mel/mel_config.json"):
        kept, original = (json.loads((folder / name).read_text()) for folder in (tmp_path / "student", teacher.folder))
        assert kept == original


def test_fingerprint_follows_weights_and_scheduler(tiny_teacher, tiny_teacher_folder):
    before = tiny_teacher.fingerprint()
    assert before == tiny_teacher.fingerprint() == load_teacher(str(tiny_teacher_folder)).fingerprint()
    changed = load_teacher(str(tiny_teacher_folder))
    with torch.no_grad():
        changed.denoiser.conv_in.bias[0] += 1e-3
    other = load_teacher(str(tiny_teacher_folder))
    other.scheduler.register_to_config(beta_end=0.02)
    assert len({before, changed.fingerprint(), other.fingerprint()}) == 3


def test_fingerprint_follows_settings_that_no_weight_shows(tiny_teacher, tiny_teacher_folder, tmp_path):
    """Of another scale of latents, other heads, other words: the same tensors compute something else."""
    tiny_teacher.encode_captions(["a cat"])  # which leaves a mark in the tokenizer
    found = {tiny_teacher.fingerprint()}
    for number, (part, change) in enumerate(
        [
            ("vae/config.json", {"scaling_factor": 0.5}),
            ("unet/config.json", {"attention_head_dim": 4}),
            ("text_encoder/config.json", {"hidden_act": "gelu"}),
            ("tokenizer/tokenizer_config.json", {"model_max_length": 10}),
        ]
    ):
        folder = Path(shutil.copytree(tiny_teacher_folder, tmp_path / str(number)))
        (folder / part).write_text(json.dumps(json.loads((folder / part).read_text()) | change))
        found.add(load_teacher(str(folder)).fingerprint())
    assert len(found) == 5


def test_missing_weights_are_named_not_made_up(broken):
    from safetensors.torch import load_file, save_file

    path = broken / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["mid_block.resnets.0.conv1.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 of the weights.*mid_block\.resnets\.0\.conv1\.weight"):
        load_teacher(str(broken))


def test_unknown_name_lists_the_shipped_ones():
    with pytest.raises(ValueError, match="no teacher 'nothing'.*shipped") as caught:
        load_teacher("nothing")
    assert all(name in str(caught.value) for name in shipped_teachers())
    assert "\n" not in str(caught.value)


def test_unreachable_hub_says_what_to_do():
    with pytest.raises(ValueError, match=r"owner/never-there.*teacher\.path"):
        load_teacher("owner/never-there")


def test_folder_without_index(tmp_path):
    with pytest.raises(ValueError, match="model_index.json"):
        load_teacher(str(tmp_path))


def test_folder_without_unet(broken):
    index = json.loads((broken / "model_index.json").read_text())
    del index["unet"]
    (broken / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="has no denoiser"):
        load_teacher(str(broken))


def test_a_tokenizer_without_its_vocabulary_is_told(broken):
    for path in (broken / "tokenizer").iterdir():
        if path.name != "tokenizer_config.json":
            path.unlink()
    with pytest.raises(InputError, match="tokenizer has no vocabulary: vocab.json"):
        load_teacher(str(broken))


def test_missing_part_is_named(broken):
    shutil.rmtree(broken / "text_encoder")
    with pytest.raises(ValueError, match="lacks its part 'text_encoder'"):
        load_teacher(str(broken))


def test_damaged_weights_are_named(broken):
    path = broken / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="unet cannot be loaded") as caught:
        load_teacher(str(broken))
    assert "\n" not in str(caught.value)


def test_no_denoiser_in_the_folder(tmp_path):
    with pytest.raises(ValueError, match="holds no denoiser"):
        load_denoiser(tmp_path)


def test_shipped_and_saved_folders_name_no_path_of_this_machine(tiny_teacher, tmp_path):
    save_student(tiny_teacher, tiny_teacher, tmp_path / "student")
    configs = [path for folder in (SHIPPED, tmp_path) for path in folder.rglob("*config.json")]
    assert len(configs) > 8
    for path in configs:
        text = path.read_text()
        assert "_name_or_path" not in text and '"/' not in text, path


def test_a_denoiser_folder_of_any_name_is_checked(tiny_teacher, tmp_path):
    from safetensors.torch import load_file, save_file

    tiny_teacher.denoiser.save_pretrained(tmp_path / "student")
    loaded = load_denoiser(tmp_path / "student")
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    path = tmp_path / "student" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors.pop("conv_in.weight")
    save_file(tensors, path)
    with pytest.raises(InputError, match=r"lacks 1 of the weights of UNet2DConditionModel, conv_in\.weight"):
        load_denoiser(tmp_path / "student")


def rewrite(path, **changes):
    """Changes entries of a JSON file; None takes one out."""
    document = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in document.items() if value is not None}))


def replaced(network, path, **changes):
    """Writes a network like `network` with another configuration and random weights."""
    type(network).from_config(dict(network.config, **changes)).save_pretrained(path)


@pytest.mark.parametrize(
    ("part", "changes", "expected"),
    [
        ("unet", {"in_channels": 9}, "in_channels=9, and the autoencoder's latents have 4 channels"),
        ("unet", {"out_channels": 8}, "out_channels=8, and the autoencoder's latents have 4 channels"),
        ("unet", {"cross_attention_dim": 24}, "the text encoder is 16 wide, and the denoiser has cross_attention_dim=24"),
        ("vae", {"latent_channels": 8}, "in_channels=4, and the autoencoder's latents have 8 channels"),
    ],
)
def test_parts_that_do_not_fit_are_told_with_both_numbers(tiny_teacher, broken, part, changes, expected):
    shutil.rmtree(broken / part)
    replaced({"unet": tiny_teacher.denoiser, "vae": tiny_teacher.autoencoder}[part], broken / part, **changes)
    with pytest.raises(InputError, match=expected) as caught:
        load_teacher(str(broken))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tokenizer": None}, "text_encoder and tokenizer go together"),
        ({"text_encoder": None, "tokenizer": None}, "attends to text, and there is no text_encoder"),
        ({"scheduler": None}, "needs an autoencoder .* and a 'scheduler'"),
        ({"vae": None}, "needs an autoencoder .* and a 'scheduler'"),
        ({"text_encoder": [None, None]}, "text_encoder and tokenizer go together"),
        ({"tokenizer_2": ["transformers", "CLIPTokenizer"]}, "text_encoder_2 and tokenizer_2 go together"),
        ({"vae": ["diffusers", "AutoencoderNothing"]}, "AutoencoderNothing is not a class this project can load"),
    ],
)
def test_an_index_that_lacks_a_part_is_told(broken, changes, expected):
    rewrite(broken / "model_index.json", **changes)
    with pytest.raises(InputError, match=expected) as caught:
        load_teacher(str(broken))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["text_encoder_2", "tokenizer_2", "tokenizer", "vae", "scheduler"])
def test_a_missing_part_of_stable_diffusion_xl_is_named(tiny_sdxl_folder, tmp_path, part):
    folder = shutil.copytree(tiny_sdxl_folder, tmp_path / "broken", ignore=shutil.ignore_patterns(part))
    with pytest.raises(InputError, match=f"lacks its part '{part}'"):
        load_teacher(str(folder))


def test_parts_of_stable_diffusion_xl_that_do_not_fit_are_told(tiny_sdxl_folder, tmp_path):
    teacher = load_teacher(str(tiny_sdxl_folder))
    folder = shutil.copytree(tiny_sdxl_folder, tmp_path / "broken", ignore=shutil.ignore_patterns("unet"))
    replaced(teacher.denoiser, folder / "unet", cross_attention_dim=32)
    with pytest.raises(InputError, match=r"the text encoder is 16 \+ 24 wide, and the denoiser has cross_attention_dim=32"):
        load_teacher(str(folder))
    shutil.rmtree(folder / "unet")
    replaced(teacher.denoiser, folder / "unet", projection_class_embeddings_input_dim=64)
    with pytest.raises(InputError, match="text_encoder_2 projects to 12, and the U-Net takes 16"):
        load_teacher(str(folder))
    shutil.rmtree(folder / "unet")
    replaced(teacher.denoiser, folder / "unet", addition_embed_type=None)
    with pytest.raises(InputError, match=r"addition_embed_type=None with 2 text encoder\(s\)"):
        load_teacher(str(folder))
    rewrite(folder / "model_index.json", text_encoder=[None, None], tokenizer=[None, None])
    with pytest.raises(InputError, match="it is Stable Diffusion XL's refiner; give the base"):
        load_teacher(str(folder))


@pytest.mark.parametrize("file", ["unet/config.json", "vae/config.json", "scheduler/scheduler_config.json", "model_index.json"])
def test_damaged_settings_are_named(broken, file):
    (broken / file).write_text("{")
    with pytest.raises(InputError, match=str(file.split("/")[0])) as caught:
        load_teacher(str(broken))
    assert "\n" not in str(caught.value)
