"""Single files in the layout of Stable Diffusion's own code."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from common.errors import InputError
from common.export.original_layout import original_weights
from common.models.hub import find_folder
from common.models.loading import load_teacher
from tests.small_teachers import change


@pytest.fixture(scope="session")
def tiny_teacher_folder(four_level_teacher_folder):
    return four_level_teacher_folder


def original_layout(folder):
    """All weights of a pipeline folder by the names of Stable Diffusion v1's checkpoints."""
    return original_weights(load_teacher(str(folder)), torch.float32)


@pytest.fixture(scope="module")
def weights(tiny_teacher_folder):
    return original_layout(tiny_teacher_folder)


@pytest.fixture
def settings(tiny_teacher_folder, tmp_path):
    """The pipeline's folder without weights."""
    return shutil.copytree(tiny_teacher_folder, tmp_path / "settings", ignore=shutil.ignore_patterns("*.safetensors"))


@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_a_single_file_is_the_pipeline_that_it_holds(tiny_teacher_folder, weights, settings, tmp_path, ending, capfd):
    path = tmp_path / f"model.{ending}"
    if ending == "ckpt":
        torch.save({"state_dict": weights, "global_step": 3}, path)
    else:
        save_file(weights, path)
    teacher, expected = load_teacher(str(path), config=str(settings)), load_teacher(str(tiny_teacher_folder))
    assert teacher.fingerprint() == expected.fingerprint()
    assert "is converted to" in capfd.readouterr().out
    assert load_teacher(str(path), config=str(settings)).folder == teacher.folder
    assert "is converted to" not in capfd.readouterr().out


def test_weights_beside_the_settings_are_not_read(tiny_teacher_folder, weights, tmp_path):
    for name, what in (
        ("input_blocks.1.0.in_layers.2.weight", "UNet2DConditionModel"),
        ("decoder.conv_in.bias", "AutoencoderKL"),
    ):
        some = {key: tensor for key, tensor in weights.items() if not key.endswith(name)}
        save_file(some, tmp_path / "some.safetensors")
        with pytest.raises(InputError, match=f"lacks 1 weights of the {what}"):
            load_teacher(str(tmp_path / "some.safetensors"), config=str(tiny_teacher_folder))
    without_text = {key: tensor for key, tensor in weights.items() if not key.startswith("cond_stage_model")}
    save_file(without_text, tmp_path / "some.safetensors")
    with pytest.raises(InputError, match="cannot be read as StableDiffusionPipeline") as caught:
        load_teacher(str(tmp_path / "some.safetensors"), config=str(tiny_teacher_folder))
    assert "\n" not in str(caught.value)


def test_a_single_file_without_settings_says_what_it_needs(weights, tiny_teacher_folder, tmp_path):
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="is a single file: give teacher.config=<folder>"):
        load_teacher(str(tmp_path / "model.safetensors"))
    with pytest.raises(InputError, match=r"There is no file teacher\.path=somewhere/model\.ckpt"):
        load_teacher("somewhere/model.ckpt")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"of none of the kinds \.safetensors"):
        load_teacher(str(tmp_path / "model.gguf"))
    with pytest.raises(InputError, match="method.path=.* is a file; a diffusers pipeline folder is needed"):
        find_folder(str(tmp_path / "model.safetensors"), None, "method.path")
    save_file({"foo": weights[next(iter(weights))]}, tmp_path / "unknown.safetensors")
    with pytest.raises(InputError, match=r"is of no known family, .* its weights are called foo and so on"):
        load_teacher(str(tmp_path / "unknown.safetensors"), config=str(tiny_teacher_folder))
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(InputError, match=r"cut\.safetensors is cut or damaged"):
        load_teacher(str(tmp_path / "cut.safetensors"), config=str(tiny_teacher_folder))
    with pytest.raises(InputError, match=r"teacher\.config=x is for single files"):
        load_teacher("emoji_t2i", config="x")
    with pytest.raises(InputError, match=r"teacher\.config=.* has no model_index\.json"):
        load_teacher(str(tmp_path / "model.safetensors"), config=str(tmp_path))


def test_the_settings_of_a_single_file_are_held_against_the_table(weights, settings, tmp_path):
    save_file(weights, tmp_path / "model.safetensors")
    change(settings, "unet/config.json", class_embed_type="timestep")
    with pytest.raises(InputError, match="class_embed_type"):
        load_teacher(str(tmp_path / "model.safetensors"), config=str(settings))


def test_settings_of_another_size_are_told(weights, settings, tmp_path):
    save_file(weights, tmp_path / "model.safetensors")
    change(settings, "unet/config.json", block_out_channels=[16, 16, 16, 16])
    with pytest.raises(InputError, match="size mismatch for conv_in") as caught:
        load_teacher(str(tmp_path / "model.safetensors"), config=str(settings))
    assert "\n" not in str(caught.value)
    change(settings, "unet/config.json", block_out_channels=[8, 16, 16, 16], mid_block_type=None)
    with pytest.raises(InputError, match="holds, beyond the settings of teacher.config, .* of the UNet2DConditionModel"):
        load_teacher(str(tmp_path / "model.safetensors"), config=str(settings))


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_nothing_in_a_checkpoint_is_run(settings, tmp_path):
    torch.save({"state_dict": {"x": torch.ones(1)}, "callbacks": Payload(str(tmp_path / "ran"))}, tmp_path / "model.ckpt")
    with pytest.raises(InputError, match="it holds more than tensors, of which nothing was run") as caught:
        load_teacher(str(tmp_path / "model.ckpt"), config=str(settings))
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x10\0\0\0\0\0\0\0{broken}"])
def test_a_damaged_file_is_told(settings, tmp_path, content):
    for ending in ("safetensors", "ckpt"):
        path = tmp_path / f"model.{ending}"
        path.write_bytes(content)
        told = "is cut or damaged" if ending == "safetensors" else "cannot be read as StableDiffusionPipeline"
        with pytest.raises(InputError, match=told) as caught:
            load_teacher(str(path), config=str(settings))
        assert "\n" not in str(caught.value)


def test_pipelines_that_diffusers_reads_of_no_single_file_are_told(tiny_uig_teacher_folder, weights, tmp_path):
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="Stable Diffusion 1, 2 and XL, not of LDMPipeline"):
        load_teacher(str(tmp_path / "model.safetensors"), config=str(tiny_uig_teacher_folder))


def test_a_safety_checker_in_the_settings_is_left_out(weights, settings, tmp_path):
    change(settings, "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    save_file(weights, tmp_path / "model.safetensors")
    folder = load_teacher(str(tmp_path / "model.safetensors"), config=str(settings)).folder
    assert json.loads((folder / "model_index.json").read_text())["safety_checker"] == [None, None]
