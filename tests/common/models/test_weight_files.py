"""Which weight files are read, by their names and from folders."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import InputError
from common.models.loading import load_denoiser, load_teacher
from common.models.saving import save_student
from common.models.weight_files import Weights, best_weights, weight_format

WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "pytorch_model"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("diffusion_pytorch_model.safetensors", ("safetensors", "")),
        ("model.safetensors", ("safetensors", "")),
        ("pytorch_model.bin", ("bin", "")),
        ("diffusion_pytorch_model.fp16.safetensors", ("safetensors", "fp16")),
        ("diffusion_pytorch_model.non_ema.bin", ("bin", "non_ema")),
        ("diffusion_pytorch_model-00001-of-00002.safetensors", ("safetensors", "")),
        ("diffusion_pytorch_model.fp16-00001-of-00002.safetensors", ("safetensors", "fp16")),
        ("diffusion_pytorch_model-00001-of-00002.fp16.safetensors", ("safetensors", "fp16")),
        ("diffusion_pytorch_model.safetensors.index.json", ("safetensors", "")),
        ("model.safetensors.index.fp16.json", ("safetensors", "fp16")),
        ("pytorch_model.bin.index.json", ("bin", "")),
        ("config.json", None),
        ("openvino_model.bin", None),
        ("flax_model.msgpack", None),
        ("model.onnx", None),
        ("diffusion_flax_model.msgpack", None),
    ],
)
def test_what_a_file_holds(name, expected):
    assert weight_format(name) == (expected and Weights(*expected))


def test_one_sort_of_weights_is_chosen():
    names = ["model.safetensors", "model.fp16.safetensors", "pytorch_model.bin", "config.json"]
    assert best_weights(names) == ("safetensors", "")
    assert best_weights(names[1:]) == ("bin", "")  # a plain pickle before a variant
    assert best_weights(["model.fp16.safetensors", "pytorch_model.fp16.bin"]) == ("safetensors", "fp16")
    assert best_weights(["config.json"]) is None


def as_pickles(folder):
    """Every weight file of a pipeline folder as .bin."""
    for part, base in WEIGHTS.items():
        (path,) = (folder / part).glob("*.safetensors")
        torch.save(load_file(path), folder / part / f"{base}.bin")
        path.unlink()


def test_a_folder_of_pickles_is_the_same_teacher(tiny_teacher, tiny_teacher_folder, tmp_path):
    folder = shutil.copytree(tiny_teacher_folder, tmp_path / "pickles")
    as_pickles(folder)
    assert load_teacher(str(folder)).fingerprint() == tiny_teacher.fingerprint()


def test_names_of_older_versions_are_read(tiny_uig_teacher_folder, tiny_teacher_folder, tmp_path):
    """The files of 2022: attention as query, key, value, proj_attn, CLIP below text_model with its position_ids, no zip."""
    older = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    folder = shutil.copytree(tiny_uig_teacher_folder, tmp_path / "uig")
    for part in ("unet", "vqvae"):
        (path,) = (folder / part).glob("*.safetensors")
        renamed = {}
        for name, tensor in load_file(path).items():
            for new, old in older.items():
                name = name.replace(new, old)
            renamed[name] = tensor
        assert any(".query." in name for name in renamed)
        torch.save(renamed, folder / part / "diffusion_pytorch_model.bin", _use_new_zipfile_serialization=False)
        path.unlink()
    assert load_teacher(str(folder)).fingerprint() == load_teacher(str(tiny_uig_teacher_folder)).fingerprint()
    folder = shutil.copytree(tiny_teacher_folder, tmp_path / "t2i")
    path = folder / "text_encoder" / "model.safetensors"
    weights = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in load_file(path).items()}
    torch.save({**weights, "text_model.embeddings.position_ids": torch.arange(12)[None]}, path.with_name("pytorch_model.bin"))
    path.unlink()
    assert load_teacher(str(folder)).fingerprint() == load_teacher(str(tiny_teacher_folder)).fingerprint()


def test_sharded_weights_are_read(tiny_teacher, tiny_teacher_folder, tmp_path):
    folder = shutil.copytree(tiny_teacher_folder, tmp_path / "shards")
    shutil.rmtree(folder / "unet")
    tiny_teacher.denoiser.save_pretrained(folder / "unet", max_shard_size="100KB")
    assert len(list((folder / "unet").glob("*-of-*.safetensors"))) > 1
    assert load_teacher(str(folder)).fingerprint() == tiny_teacher.fingerprint()


def test_a_variant_is_read_and_saved_where_nothing_else_is(tiny_teacher, tiny_teacher_folder, tmp_path):
    from diffusers import DiffusionPipeline

    folder = shutil.copytree(tiny_teacher_folder, tmp_path / "variant")
    for part in WEIGHTS:
        (path,) = (folder / part).glob("*.safetensors")
        half = {name: tensor.half() for name, tensor in load_file(path).items()}
        save_file(half, path.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
        path.unlink()
    teacher = load_teacher(str(folder))
    weight = tiny_teacher.denoiser.conv_in.weight
    assert torch.equal(teacher.denoiser.conv_in.weight, weight.half().float()) and teacher.denoiser.dtype == torch.float32
    save_student(teacher, teacher, tmp_path / "student")
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "student")
    assert torch.equal(pipeline.vae.state_dict()["quant_conv.weight"], teacher.autoencoder.state_dict()["quant_conv.weight"])


def test_a_student_s_folder_has_each_weight_once(tiny_teacher_folder, tmp_path):
    folder = shutil.copytree(tiny_teacher_folder, tmp_path / "both")
    weights = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    torch.save(weights, folder / "vae" / "diffusion_pytorch_model.bin")
    save_file(weights, folder / "vae" / "diffusion_pytorch_model.fp16.safetensors")
    teacher = load_teacher(str(folder))
    save_student(teacher, teacher, tmp_path / "student")
    assert {path.name for path in (tmp_path / "student" / "vae").iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }


class Malicious:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("part", WEIGHTS)
def test_a_pickle_that_would_run_code_is_refused(tiny_teacher_folder, tmp_path, part):
    folder = shutil.copytree(tiny_teacher_folder, tmp_path / "malicious")
    as_pickles(folder)
    torch.save({"weight": Malicious(tmp_path / "ran")}, folder / part / f"{WEIGHTS[part]}.bin")
    with pytest.raises(InputError, match=f"{part} cannot be loaded.*nothing was run") as caught:
        load_teacher(str(folder))
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()
    torch.load(folder / part / f"{WEIGHTS[part]}.bin", weights_only=False)
    assert (tmp_path / "ran").exists()  # it would have


def test_a_part_without_weights_is_named(tiny_teacher_folder, tmp_path):
    folder = shutil.copytree(tiny_teacher_folder, tmp_path / "bare")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    for load in (load_teacher, load_denoiser):
        with pytest.raises(InputError, match=r"unet holds no weights of UNet2DConditionModel \(\.safetensors or \.bin\)"):
            load(str(folder))


def test_a_codebook_s_latents_are_scaled_only_where_its_configuration_says_so(tiny_uig_teacher_folder, tmp_path):
    folder = shutil.copytree(tiny_uig_teacher_folder, tmp_path / "celebahq")
    path = folder / "vqvae" / "config.json"
    config = json.loads(path.read_text())
    stated = config.pop("scaling_factor")
    assert load_teacher(str(folder)).autoencoder.config.scaling_factor == stated != 1
    path.write_text(json.dumps(config))
    teacher = load_teacher(str(folder))
    assert teacher.autoencoder.config.scaling_factor == 1.0
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = teacher.autoencoder.encode(images.float() / 127.5 - 1).latents
    assert torch.equal(teacher.encode_images(images), expected)
    save_student(teacher, teacher, tmp_path / "student")
    assert json.loads((tmp_path / "student" / "vqvae" / "config.json").read_text())["scaling_factor"] == 1.0
