"""A trained latent diffusion model as one thing: denoiser, autoencoder, scheduler and text encoders."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.errors import InputError
from common.hub import NETWORKS, PARTS, find_folder
from common.latents import pixels_for, scale_latents, unscale_latents
from common.mel_settings import read_mel
from common.noise_schedule import check_noise
from common.pictures import to_uint8
from common.pipeline_checks import check_named_parts, check_parts_fit, check_tokenizers
from common.pipeline_defaults import settle_sample_size, settle_scheduler
from common.sampling import Conditions, describe_scheduler
from common.single_file import folder_of_file, is_single_file
from common.spectrogram import Spectrogram
from common.strict_json import read_json
from common.teacher_parts import load_part
from common.teacher_settings import check_pipeline_settings, named_parts
from common.text_conditions import encode_text, size_conditions

PIXELS_AT_ONCE = 2**22  # through an autoencoder: 16 images of 512 x 512, or 4 of 1024 x 1024


def at_once(batch_size: int, height: int, width: int) -> int:
    """How many images go through an autoencoder together: batch_size, or fewer of large ones."""
    return max(1, min(batch_size, PIXELS_AT_ONCE // (height * width)))


@dataclass
class Teacher:
    """The parts of a diffusers pipeline that pruning and distillation need.

    latent_shape is (channels, height, width) of one latent; tokenizers and text encoders are None without text, the second
    ones None except in Stable Diffusion XL. zeros_for_empty: the condition of no caption is zeros, not that of "" (XL).
    sound: what its images stand for, where the folder tells (AudioDiffusion's mel).
    """

    name: str
    folder: Path
    denoiser: nn.Module
    autoencoder: nn.Module
    scheduler: Any
    tokenizer: Any = None
    text_encoder: nn.Module | None = None
    tokenizer_2: Any = None
    text_encoder_2: nn.Module | None = None
    zeros_for_empty: bool = False
    sound: Spectrogram | None = None
    _fingerprint: str = ""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        size = self.denoiser.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return (self.denoiser.config.in_channels, height, width)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images that latents of latent_shape become."""
        factor = 2 ** (len(self.autoencoder.config.block_out_channels) - 1)
        return (self.latent_shape[1] * factor, self.latent_shape[2] * factor)

    @property
    def networks(self) -> list[nn.Module]:
        """Denoiser, autoencoder and text encoders, as many as there are."""
        return [self.denoiser, self.autoencoder, *self.text_encoders]

    @property
    def text_encoders(self) -> list[nn.Module]:
        """None, one, or the two of Stable Diffusion XL."""
        return [encoder for encoder in (self.text_encoder, self.text_encoder_2) if encoder is not None]

    def with_parts(self, **parts: nn.Module) -> "Teacher":
        """The same pipeline with other networks: with_parts(denoiser=student)."""
        return replace(self, **parts, _fingerprint="")

    def to(self, device: str | torch.device) -> "Teacher":
        for network in self.networks:
            network.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @torch.no_grad()
    def encode_captions(self, captions: list[str]) -> Conditions:
        """The denoiser's conditions for the captions, a row each (common/text_conditions.py); {} without text."""
        if self.text_encoder is None:
            return {}
        encoders = list(zip((self.tokenizer, self.tokenizer_2), self.text_encoders, strict=False))
        conditions = encode_text(encoders, captions)
        if "text_embeds" in conditions:
            conditions["time_ids"] = size_conditions(*self.image_size, len(captions)).to(self.device)
        return conditions

    def empty_condition(self) -> Conditions:
        """The condition of no caption, one row."""
        conditions = self.encode_captions([""])
        if self.zeros_for_empty:
            conditions |= {name: torch.zeros_like(value) for name, value in conditions.items() if name != "time_ids"}
        return conditions

    @torch.no_grad()
    def encode_images(self, images: torch.Tensor, batch_size: int = 64) -> torch.Tensor:
        """Latents (count, *latent_shape) of uint8 images (count, 1 or 3, height, width): posterior means, scaled."""
        finished, config = [], self.autoencoder.config
        for chunk in images.split(at_once(batch_size, *images.shape[2:])):
            encoded = self.autoencoder.encode(pixels_for(self.autoencoder, chunk.to(self.device)))
            latents = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents
            finished.append(scale_latents(config, latents.cpu()))
        return torch.cat(finished)

    @torch.no_grad()
    def decode_latents(self, latents: torch.Tensor, batch_size: int = 64) -> torch.Tensor:
        """uint8 images (count, 1 or 3, height, width) on the CPU from latents (count, *latent_shape)."""
        return torch.cat([to_uint8(self.decode(chunk)).cpu() for chunk in latents.split(at_once(batch_size, *self.image_size))])

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images (batch, 1 or 3, height, width), in [-1, 1] but for what the decoder overshoots, on the teacher's device."""
        return self.autoencoder.decode(unscale_latents(self.autoencoder.config, latents.to(self.device))).sample

    def fingerprint(self) -> str:
        """Changes with any weight or setting of the denoiser, autoencoder or text encoders, with scheduler and tokenizers.

        It is of what has been loaded, in whatever format it was kept, and names what is computed with it; what names a job
        before anything is loaded is experiments.identity.pipeline_identity.
        """
        if self._fingerprint:
            return self._fingerprint
        described = [describe_scheduler(self.scheduler), self.zeros_for_empty]
        described += [describe_network(network) for network in self.networks]
        described += [describe_tokenizer(each) for each in (self.tokenizer, self.tokenizer_2) if each is not None]
        digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
        for network in self.networks:
            for name, tensor in network.state_dict().items():
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint


def describe_network(network: nn.Module) -> dict[str, Any]:
    """What a network's class and its config.json say of how it computes; not by what, and in what precision, it was saved."""
    config = network.config
    settings = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    written = ("transformers_version", "dtype", "torch_dtype", "architectures")
    kept = {name: value for name, value in settings.items() if not name.startswith("_") and name not in written}
    return {"class": type(network).__name__, **kept}


def describe_tokenizer(tokenizer: Any) -> dict[str, Any]:
    """What decides how a tokenizer splits a text: words, merges, special tokens, length."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    used = {name: value for name, value in backend.items() if name not in ("padding", "truncation")}  # of its last call
    return {"backend": used, "length": tokenizer.model_max_length, "special": tokenizer.special_tokens_map}


def load_teacher(name_or_path: str, revision: str | None = None, config: str | None = None) -> Teacher:
    """Loads a shipped teacher by name, a local diffusers pipeline folder, or a hub repository, in float32 on the CPU.

    config: the folder of a pipeline by whose settings a single file of weights is read (common/single_file.py). Raises
    InputError with one line for a missing folder, an unreachable hub, a missing part, a damaged file, and for a setting that
    is not honoured (common/teacher_settings.py).
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
    settle_sample_size(folder, index, parts["unet"])
    check_noise(f"{folder}/scheduler", parts["scheduler"])
    teacher = Teacher(
        name=Path(name_or_path).name,
        folder=folder,
        denoiser=parts["unet"],
        autoencoder=parts.get("vae") or parts["vqvae"],
        scheduler=settle_scheduler(index, parts["scheduler"]),
        tokenizer=parts.get("tokenizer"),
        text_encoder=parts.get("text_encoder"),
        tokenizer_2=parts.get("tokenizer_2"),
        text_encoder_2=parts.get("text_encoder_2"),
        zeros_for_empty="text_encoder_2" in parts and bool(index.get("force_zeros_for_empty_prompt", True)),
        sound=read_mel(folder) if "mel" in named_parts(index) else None,
    )
    check_parts_fit(folder, teacher.denoiser, teacher.autoencoder, teacher.text_encoders)
    check_tokenizers(folder, [teacher.tokenizer, teacher.tokenizer_2], teacher.text_encoders)
    return teacher


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
        folder = folder / "unet"
    return load_network(folder, "denoiser")


def load_autoencoder(folder: Path) -> nn.Module:
    """The autoencoder of a pipeline folder."""
    return load_network(folder / autoencoder_part(folder), "autoencoder")


def load_network(folder: Path, what: str) -> nn.Module:
    """A network from its own folder by the class that its config.json names; `what` it is tells the InputError."""
    try:
        class_name = json.loads((folder / "config.json").read_text())["_class_name"]
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise InputError(f"{folder} holds no {what}: no readable config.json with a _class_name.") from error
    library = "pruned_unet" if class_name.startswith("Pruned") else "diffusers"
    return load_part(folder.parent, folder.name, library, class_name, network=True)
