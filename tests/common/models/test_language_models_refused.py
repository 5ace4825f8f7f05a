"""Teachers of Sana's, FLUX.2-klein's and Qwen-Image's kind that are refused, each in one line before any work."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

from common.errors import InputError
from common.models.loading import load_teacher
from tests.commands import run
from tests.conftest import small_autoencoder
from tests.language_model_pipelines import write, written
from tests.small_jobs import job


def test_what_does_not_fit_is_told(family, tmp_path):
    width = "caption_channels" if family.name == "sana" else "joint_attention_dim"
    folder = written(family.name, tmp_path / "text", **{width: 40})
    with pytest.raises(InputError, match=f"denoiser has {width}=40"):
        load_teacher(str(folder))
    folder = written(family.name, tmp_path / "latents", in_channels=8 if family.name == "sana" else 32)
    with pytest.raises(InputError, match="the transformer has in_channels=.*, and the autoencoder's latents have 4 channels"):
        load_teacher(str(folder))
    folder = written(family.name, tmp_path / "quantised")
    write(folder / "text_encoder" / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(InputError, match=r"text_encoder/config.json sets quantization_config=.*read in float32"):
        load_teacher(str(folder))
    folder = written(family.name, tmp_path / "other")
    write(folder / "model_index.json", text_encoder=["transformers", "MistralModel"])
    with pytest.raises(InputError, match="MistralModel is not a class this project can load"):
        load_teacher(str(folder))
    write(folder / "model_index.json", text_encoder=[None, None], tokenizer=[None, None])
    with pytest.raises(InputError, match="attends to text, and there is no text_encoder"):
        load_teacher(str(folder))
    write(folder / "model_index.json", _class_name="PixArtSigmaPipeline")
    with pytest.raises(InputError, match="PixArtSigmaPipeline draws with a PixArtTransformer2DModel, and its transformer is a"):
        load_teacher(str(folder))


def test_an_autoencoder_of_another_class_or_of_other_latents_is_refused(family, tmp_path):
    folder = written(family.name, tmp_path / "teacher")
    own = load_teacher(str(folder)).autoencoder
    small_autoencoder().save_pretrained(tmp_path / "kl")
    shutil.rmtree(folder / "vae")
    shutil.copytree(tmp_path / "kl", folder / "vae")
    write(folder / "model_index.json", vae=["diffusers", "AutoencoderKL"])
    with pytest.raises(InputError, match=f"AutoencoderKL beside a .*, which goes with {type(own).__name__}"):
        load_teacher(str(folder))
    if family.name == "flux2_klein":
        own.bn.running_mean += 3
        word = "the statistics by which they are scaled"
    else:
        changes = {"scaling_factor": 2.0} if family.name == "sana" else {"latents_mean": [0.0] * 4}
        own.register_to_config(**changes)
        (word,) = changes
    own.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match=f"has other latents: {word}"):
        load_teacher(str(family.folder), vae=str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("family_name", "changes", "told"),
    [
        ("qwen_image", {"latents_mean": [1.0, 2.0, 3.0]}, "4 finite numbers are needed"),
        ("qwen_image", {"latents_std": [0.0, 1.0, 1.0, 1.0]}, "numbers above 0 are needed"),
        ("qwen_image", {"latents_mean": None, "latents_std": None}, "4 finite numbers are needed"),
        ("sana", {"scaling_factor": 0.0}, "scaling_factor=0.0"),
        ("flux2_klein", {"running_var": -1.0}, "bn.running_var has numbers below 0"),
        ("flux2_klein", {"running_mean": float("nan")}, "bn.running_mean is not finite"),
    ],
)
def test_statistics_by_which_no_latents_can_be_scaled(family_name, changes, told, tmp_path):
    folder = written(family_name, tmp_path / "teacher")
    if family_name == "flux2_klein":
        ((name, value),) = changes.items()
        path = folder / "vae" / "diffusion_pytorch_model.safetensors"
        weights = load_file(path)
        weights[f"bn.{name}"].fill_(value)
        save_file(weights, path)
    else:
        write(folder / "vae" / "config.json", **changes)
    with pytest.raises(InputError, match=told):
        load_teacher(str(folder))


def test_tokenizers_that_cannot_do_their_work_are_refused(family, tmp_path):
    folder = written(family.name, tmp_path / "teacher")
    settings = folder / "tokenizer" / "tokenizer_config.json"
    write(settings, pad_token=None)
    with pytest.raises(InputError, match="has no pad_token"):
        load_teacher(str(folder))
    folder = written(family.name, tmp_path / "again")
    template = folder / "tokenizer" / "chat_template.jinja"
    if family.name != "flux2_klein":
        return
    for text in (None, "{{ messages[0].content.nothing.at_all }}"):
        template.unlink() if text is None else template.write_text(text)
        with pytest.raises(InputError, match="makes no turn of a chat"):
            load_teacher(str(folder))


@pytest.mark.parametrize(("family_name", "kind"), [("sana", "AutoencoderDC"), ("qwen_image", "AutoencoderKLQwenImage")])
def test_autoencoders_that_are_not_trained(family_name, kind, tmp_path):
    folder = written(family_name, tmp_path / "teacher")
    words = job("t2i", folder, tmp_path, "method.parts=[denoiser,autoencoder]", "distill.autoencoder.steps=2", method="l1_diff")
    for more in ([], ["dry_run=true"]):
        done = run(*words, *more)
        assert done.returncode == 2 and f"are trained, and this is a {kind}" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


def test_a_distilled_teacher_is_never_guided(tmp_path):
    folder = written("flux2_klein", tmp_path / "teacher", distilled=True)
    words = job("t2i", folder, tmp_path, "method.ratio=0.4", "budget.guidance_scale=1", method="laptop_diff")
    for name in ("method.guidance_scale", "evaluation.guidance_scale"):
        done = run(*words, f"{name}=4")
        assert done.returncode == 2 and f"error: {name}=4: the teacher is distilled to few steps" in done.stderr, done.stderr
