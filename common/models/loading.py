"""Reads pipelines and networks from folders: a shipped teacher, a folder of diffusers, a hub repository, a single file."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from common.denoisers.denoiser import architecture_of
from common.diffusion.autoencoders import latent_channels, levels
from common.diffusion.latents import same_statistics
from common.diffusion.noise_schedule import check_noise
from common.diffusion.text_encoding import check_reading
from common.errors import InputError
from common.models.compatibility import check_named_parts, check_parts_fit, check_tokenizers
from common.models.honoured_settings import check_pipeline_settings, named_parts
from common.models.hub import NETWORKS, PARTS, TEXT_ENCODERS, TOKENIZERS, denoiser_part, find_folder, is_repository
from common.models.latent_diffusion import LatentDiffusion
from common.models.lora import fuse_lora
from common.models.mel_settings import read_mel
from common.models.parts import load_part
from common.models.pipeline_defaults import (
    call_default,
    check_pipeline_fits,
    settle_sample_size,
    settle_scheduler,
    settle_text_length,
    told_guidance,
)
from common.models.single_file import folder_of_file, is_single_file
from common.runtime.strict_json import read_json


def load_teacher(
    name_or_path: str,
    revision: str | None = None,
    config: str | None = None,
    vae: str | None = None,
    lora: str | None = None,
    lora_scale: float = 1.0,
) -> LatentDiffusion:
    """Loads a shipped teacher by name, a local diffusers pipeline folder, or a hub repository, in float32 on the CPU.

    config: the folder of a pipeline by whose settings a single file of weights is read (common/models/single_file.py). vae: the
    folder of an autoencoder, or of a pipeline that has one, in place of the teacher's own. lora: a file or folder that is
    added, lora_scale times, to the weights (common/models/lora.py). Raises InputError with one line for a missing folder, an
    unreachable hub, a missing part, a damaged file, parts that do not fit each other, and for a setting that is not honoured
    (common/models/honoured_settings.py).
    """
    single = is_single_file(name_or_path)
    if config is not None and not single:
        raise InputError(f"teacher.config={config} is for single files; teacher.path={name_or_path} brings its own settings.")
    folder = folder_of_file(name_or_path, config) if single else find_folder(name_or_path, revision)
    index = read_index(folder)
    check_pipeline_settings(folder, index)
    named = {name: value for name, value in named_parts(index).items() if name in PARTS}
    check_named_parts(folder, named)
    parts = {name: load_part(folder, name, *value, network=name in NETWORKS) for name, value in named.items()}
    if vae is not None:
        own = "vae" if "vae" in parts else "vqvae"
        parts[own] = other_autoencoder(vae, parts[own])
    settle_sample_size(folder, index, parts[denoiser_part(parts)])
    if lora is not None:
        fuse_lora(index["_class_name"], parts, lora, lora_scale)
    check_noise(f"{folder}/scheduler", parts["scheduler"])
    check_pipeline_fits(folder, index, parts[denoiser_part(parts)])
    teacher = put_together(Path(name_or_path).name, folder, index, parts)
    teacher.sound = read_mel(folder) if "mel" in named_parts(index) else None
    check_parts_fit(folder, teacher.denoiser, teacher.autoencoder, teacher.text_encoders)
    check_tokenizers(folder, teacher.tokenizers, teacher.text_encoders)
    check_reading(folder, teacher.tokenizers, teacher.reading.how)
    return teacher


def put_together(name: str, folder: Path, index: dict[str, Any], parts: dict[str, Any]) -> LatentDiffusion:
    """The teacher of a pipeline's parts, used as the pipeline of `index` would use them."""
    denoiser = parts[denoiser_part(parts)]
    settle_text_length(index, [parts[name] for name in TOKENIZERS if name in parts])
    of_xl = "text_encoder_2" in parts and architecture_of(denoiser).reads_text == "states"
    return LatentDiffusion(
        name=name,
        folder=folder,
        denoiser=denoiser,
        autoencoder=parts.get("vae") or parts["vqvae"],
        scheduler=settle_scheduler(index, parts["scheduler"]),
        **{part: parts.get(part) for part in (*TOKENIZERS, *TEXT_ENCODERS)},
        zeros_for_empty=of_xl and bool(index.get("force_zeros_for_empty_prompt", True)),
        told_guidance=told_guidance(folder, index, denoiser),
        instruction="\n".join(call_default(index, "complex_human_instruction") or ()),
        distilled=bool(index.get("is_distilled", False)),
    )


def read_index(folder: Path) -> dict[str, Any]:
    """model_index.json of a pipeline folder; InputError when it is not JSON."""
    return read_json(folder / "model_index.json")


def autoencoder_part(folder: Path) -> str:
    """The name of the autoencoder in a pipeline folder: "vae" or "vqvae"."""
    index = read_index(folder)
    return next(name for name in ("vae", "vqvae") if index.get(name, [None])[0])


def load_denoiser(path: str | Path) -> nn.Module:
    """A denoiser from its own folder (config.json beside the weights), with its plan where it has one."""
    folder = Path(path)
    if (folder / "model_index.json").is_file():
        folder = folder / denoiser_part(path.name for path in folder.iterdir())
    return load_network(folder, "denoiser")


def load_autoencoder(folder: Path) -> nn.Module:
    """The autoencoder of a pipeline folder."""
    return load_network(folder / autoencoder_part(folder), "autoencoder")


def other_autoencoder(path: str, own: nn.Module) -> nn.Module:
    """The autoencoder of teacher.vae; InputError where its latents are others than those of the teacher's own."""
    folder = find_folder(path, None) if is_repository(path) and not Path(path).exists() else Path(path).expanduser()
    if not folder.is_dir():
        raise InputError(f"teacher.vae={path} is no folder: give that of an autoencoder, or of a pipeline that has one.")
    whole = (folder / "model_index.json").is_file()
    found = load_autoencoder(folder) if whole else load_network(folder, "autoencoder")
    if type(found) is not type(own):
        raise InputError(f"teacher.vae={path} is a {type(found).__name__}, and the teacher's is a {type(own).__name__}.")
    counted = {"latent_channels": latent_channels, "levels": levels}
    for name in ("latent_channels", "levels", "scaling_factor", "shift_factor", "latents_mean", "latents_std"):
        theirs, ours = (counted.get(name, lambda config, name=name: config.get(name))(each.config) for each in (found, own))
        if theirs != ours:
            raise InputError(
                f"teacher.vae={path} has other latents: {name}={theirs}, and the teacher's autoencoder has {ours}."
            )
    if same_statistics(found, own):
        return found
    raise InputError(f"teacher.vae={path} has other latents: the statistics by which they are scaled are not the teacher's.")


def load_network(folder: Path, what: str) -> nn.Module:
    """A network from its own folder by the class that its config.json names; `what` it is tells the InputError."""
    try:
        class_name = json.loads((folder / "config.json").read_text())["_class_name"]
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise InputError(f"{folder} holds no {what}: no readable config.json with a _class_name.") from error
    library = "pruned_denoiser" if class_name.startswith("Pruned") else "diffusers"
    return load_part(folder.parent, folder.name, library, class_name, network=True)
