"""The full-size models without weights: their counts, and folders of them with random weights."""

import json

import pytest
import torch

from common.cost.macs import count_parameters
from common.errors import InputError
from common.models.architectures import architecture, descriptions, meta_teacher, parts_of, write_random_folder
from common.models.loading import load_teacher

DENOISERS = {
    "sd1": 859_520_964,
    "sd21_base": 865_910_724,
    "sdxl": 2_567_463_684,
    "ldm4_celebahq": 274_056_163,
    "bk_sdm_base": 579_384_964,
    "bk_sdm_small": 482_346_884,
    "bk_sdm_tiny": 323_384_964,
    "bk_sdm_v2_base": 583_480_964,
    "bk_sdm_v2_small": 485_787_524,
    "bk_sdm_v2_tiny": 326_825_604,
    "pixart_sigma": 610_856_096,
    "sd3_medium": 2_028_328_000,
    "flux1_dev": 11_901_408_320,
    "sana_1600m": 1_604_462_752,
    "flux2_klein_4b": 3_875_544_576,
    "flux2_klein_base_4b": 3_875_544_576,
    "qwen_image": 20_430_401_088,
}
ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}  # of heads that are 8 wide


@pytest.mark.parametrize("name", DENOISERS)
def test_golden_counts(name):
    assert count_parameters(meta_teacher(name).denoiser) == DENOISERS[name]


def test_whole_models_have_their_published_sizes():  # with text encoder and decoder, without the encoder (BK-SDM's issue 53)
    sd = meta_teacher("CompVis/stable-diffusion-v1-4")
    decoder = count_parameters(sd.autoencoder.decoder) + count_parameters(sd.autoencoder.post_quant_conv)
    whole = count_parameters(sd.denoiser) + count_parameters(sd.text_encoder) + decoder
    assert round(whole / 1e6, 2) == 1032.07 and round(count_parameters(sd.text_encoder) / 1e6, 2) == 123.06
    audio = meta_teacher("teticio/latent-audio-diffusion-256")  # 163.1M in LD-Pruner's table 2
    decoder = count_parameters(audio.autoencoder.decoder) + count_parameters(audio.autoencoder.post_quant_conv)
    assert round((count_parameters(audio.denoiser) + decoder) / 1e6, 1) == 163.1


def test_pixart_sigma_has_t5s_encoder():
    teacher = meta_teacher("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS")
    assert count_parameters(teacher.text_encoder) == 4_762_310_656  # of T5 v1.1 XXL's 11 thousand millions
    assert teacher.latent_shape == (4, 128, 128)


def test_stable_diffusion_3_has_three_text_encoders():
    teacher = meta_teacher("stabilityai/stable-diffusion-3-medium-diffusers")
    counts = [123_650_304, 694_659_840, 4_762_310_656]  # CLIP L/14 and bigG/14 with their projections, T5 v1.1 XXL
    assert list(map(count_parameters, teacher.text_encoders)) == counts
    assert teacher.latent_shape == (16, 128, 128) and teacher.image_size == (1024, 1024)
    assert count_parameters(teacher.autoencoder) == 83_819_683


@pytest.mark.parametrize(
    ("name", "encoder", "autoencoder", "latents", "distilled"),
    [  # Gemma 2 of 2 billion, Qwen3 of 4, Qwen2.5-VL of 7
        ("sana_1600m", 2_614_341_888, 312_250_275, (32, 32, 32), False),
        ("flux2_klein_4b", 4_022_468_096, 84_046_115, (32, 128, 128), True),
        ("flux2_klein_base_4b", 4_022_468_096, 84_046_115, (32, 128, 128), False),
        ("qwen_image", 8_292_166_656, 126_892_531, (16, 128, 128), False),
    ],
)
def test_language_models_read_for_newer_transformers(name, encoder, autoencoder, latents, distilled):
    teacher = meta_teacher(name)
    assert count_parameters(teacher.text_encoder) == encoder
    assert count_parameters(teacher.autoencoder) == autoencoder
    assert teacher.latent_shape == latents and teacher.image_size == (1024, 1024)
    assert teacher.distilled == distilled and bool(teacher.instruction) == name.startswith("sana")


def test_a_random_folder_of_changed_settings(tmp_path):
    """PixArt's layout in small, with T5 and its tokenizer."""
    small = {"d_model": 32, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 64}
    transformer = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16}
    changes = {
        "text_encoder": small,
        "transformer": {**transformer, "caption_channels": 32, "sample_size": 8},
        "vae": {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1, "sample_size": 64},
    }
    write_random_folder("pixart_sigma", tmp_path / "teacher", changes=changes)
    teacher = load_teacher(str(tmp_path / "teacher"))
    assert teacher.encode_captions(["a cat"])["encoder_hidden_states"].shape == (1, 300, 32)


@pytest.mark.parametrize(
    ("name", "text", "denoiser", "vae"),
    [
        (
            "sana_1600m",
            {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16, "head_dim": 8, "vocab_size": 400},
            {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 4, "num_cross_attention_heads": 2}
            | {"cross_attention_head_dim": 4, "cross_attention_dim": 8, "caption_channels": 16},
            {f"{half}_block_out_channels": [32] * 6 for half in ("encoder", "decoder")},
        ),
        (
            "qwen_image",
            {
                "text_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
                | {"intermediate_size": 16, "vocab_size": 400, "rope_parameters": ROPE},
                "vision_config": {
                    "depth": 1,
                    "hidden_size": 16,
                    "num_heads": 2,
                    "intermediate_size": 16,
                    "out_hidden_size": 16,
                },
            },
            {"num_layers": 1, "num_attention_heads": 1, "joint_attention_dim": 16},
            {"base_dim": 6, "num_res_blocks": 1},
        ),
    ],
)
def test_a_random_folder_that_a_language_model_reads_for(tmp_path, name, text, denoiser, vae):
    changes = {"text_encoder": text, "transformer": denoiser, "vae": vae}
    write_random_folder(name, tmp_path / "teacher", changes=changes)
    teacher = load_teacher(str(tmp_path / "teacher"))
    length = {"sana_1600m": 300, "qwen_image": 512}[name]
    assert teacher.encode_captions(["a cat"])["encoder_hidden_states"].shape == (1, length, 16)


def test_what_a_variant_shares_with_its_teacher_is_said_once():
    assert "text_encoder" not in descriptions()["architectures"]["bk_sdm_tiny"]["parts"]
    assert architecture("segmind/tiny-sd")["parts"]["text_encoder"] == architecture("sd1")["parts"]["text_encoder"]


def test_a_local_folder_describes_itself(tiny_teacher_folder, tiny_teacher):
    found = meta_teacher(str(tiny_teacher_folder))
    assert found.latent_shape == tiny_teacher.latent_shape
    shapes = [{k: v.shape for k, v in teacher.denoiser.state_dict().items()} for teacher in (found, tiny_teacher)]
    assert shapes[0] == shapes[1] and all(value.is_meta for value in found.denoiser.state_dict().values())


def test_unknown_names_and_missing_parts(tiny_teacher_folder, tmp_path):
    with pytest.raises(InputError, match="ldm4_celebahq.*segmind/small-sd"):
        meta_teacher("nobody/nothing")
    (tmp_path / "model_index.json").write_text((tiny_teacher_folder / "model_index.json").read_text())
    with pytest.raises(InputError, match=r"lacks scheduler/scheduler_config\.json"):
        parts_of(str(tmp_path))
    (tmp_path / "scheduler").mkdir()
    for damaged, content in (("scheduler/scheduler_config.json", b'{"a": '), ("model_index.json", b"\xff\xfe")):
        (tmp_path / damaged).write_bytes(content)
        with pytest.raises(InputError, match=f"{damaged} is not JSON"):
            parts_of(str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("binary", [False, True])
def test_a_random_folder_at_full_size_loads(tmp_path, binary):
    write_random_folder("audio_diffusion", tmp_path / "teacher", binary=binary)
    ending = "bin" if binary else "safetensors"
    assert len(list((tmp_path / "teacher").glob(f"*/*.{ending}"))) == 2
    assert json.loads((tmp_path / "teacher" / "mel" / "mel_config.json").read_text())["x_res"] == 256
    teacher = load_teacher(str(tmp_path / "teacher"))
    assert (count_parameters(teacher.denoiser), teacher.latent_shape) == (113_668_609, (1, 32, 32))
    assert teacher.denoiser.conv_in.weight.abs().sum() > 0


def test_the_tokenizer_written_is_clip_s(tmp_path):
    from transformers import CLIPTokenizer

    from common.models.architectures import write_tokenizer

    write_tokenizer(tmp_path / "tokenizer", {"model_max_length": 77})
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    ids = tokenizer(["a Cat"], padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert ids.shape == (1, 77) and ids[0, 0] == 49406 and ids[0, -1] == 49407
    assert torch.equal(ids, tokenizer(["a cat"], padding="max_length", return_tensors="pt").input_ids)
