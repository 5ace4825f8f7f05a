"""A trained latent diffusion model as one thing: denoiser, autoencoder, scheduler and text encoders."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.errors import InputError, first_line
from common.hub import NETWORKS, PARTS, find_folder
from common.pipeline_checks import check_named_parts, check_parts_fit
from common.sampling import Conditions, describe_scheduler
from common.text_conditions import check_vocabulary, encode_text, size_conditions
from common.weight_files import best_weights

PIXELS_AT_ONCE = 2**22  # through an autoencoder: 16 images of 512 x 512, or 4 of 1024 x 1024


def at_once(batch_size: int, height: int, width: int) -> int:
    """How many images go through an autoencoder together: batch_size, or fewer of large ones."""
    return max(1, min(batch_size, PIXELS_AT_ONCE // (height * width)))


@dataclass
class Teacher:
    """The parts of a diffusers pipeline that pruning and distillation need.

    latent_shape is (channels, height, width) of one latent; tokenizers and text encoders are None without text, the second
    ones None except in Stable Diffusion XL. zeros_for_empty: the condition of no caption is zeros, not that of "" (XL).
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
        """Latents (count, *latent_shape) of uint8 images (count, 3, height, width): posterior means, scaled."""
        finished = []
        for chunk in images.split(at_once(batch_size, *images.shape[2:])):
            encoded = self.autoencoder.encode(chunk.to(self.device).float() / 127.5 - 1)
            latents = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents
            finished.append(latents.cpu() * self.autoencoder.config.scaling_factor)
        return torch.cat(finished)

    @torch.no_grad()
    def decode_latents(self, latents: torch.Tensor, batch_size: int = 64) -> torch.Tensor:
        """uint8 images (count, 3, height, width) on the CPU from latents (count, *latent_shape)."""
        from common.pictures import to_uint8

        scale = self.autoencoder.config.scaling_factor
        chunks = latents.split(at_once(batch_size, *self.image_size))
        return torch.cat([to_uint8(self.autoencoder.decode(chunk.to(self.device) / scale).sample).cpu() for chunk in chunks])

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


def without_library_bars() -> None:
    """Keeps diffusers and transformers from drawing bars while they load and save: the project's own tell of it."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def load_part(folder: Path, name: str, library: str, class_name: str, network: bool) -> Any:
    """One part of a pipeline folder, by the library and class that model_index.json names; `network`: it has weights."""
    import diffusers
    import transformers

    from common import pruned_unet

    without_library_bars()
    module = {"diffusers": diffusers, "transformers": transformers, "pruned_unet": pruned_unet}.get(library)
    if module is None or not hasattr(module, class_name):
        raise InputError(f"{folder / name}: {library}.{class_name} is not a class this project can load.")
    if not (folder / name).is_dir():
        raise InputError(f"{folder} lacks its part {name!r} ({class_name}), which model_index.json names.")
    options: dict[str, Any] = {}
    if network:
        weights = best_weights(path.name for path in (folder / name).iterdir())
        if weights is None:
            raise InputError(f"{folder / name} holds no weights of {class_name} (.safetensors or .bin).")
        options = {"torch_dtype": torch.float32, "output_loading_info": True, **weights.options()}
        if library != "transformers":
            options["low_cpu_mem_usage"] = False
    try:
        part = getattr(module, class_name).from_pretrained(folder / name, local_files_only=True, **options)
    except InputError:
        raise
    except Exception as error:  # safetensors, JSON, pickle and torch each raise their own kind for a damaged file
        reason = "its .bin holds more than tensors, of which nothing was run" if refused_pickle(error) else first_line(error)
        raise InputError(f"{folder / name} cannot be loaded as {class_name}: {reason}") from error
    if network:
        part, report = part
        absent = sorted(report["missing_keys"])
        if absent:
            raise InputError(f"{folder / name} lacks {len(absent)} of the weights of {class_name}, {absent[0]} among them.")
        for parameter in part.parameters():  # weights mapped from a file lie unaligned, and then sums round differently
            parameter.data = parameter.data.clone()
        if class_name == "VQModel":
            state_scaling_factor(part, folder / name)
    if name.startswith("tokenizer"):
        check_vocabulary(part, folder / name)
    return part.eval().requires_grad_(False) if isinstance(part, nn.Module) else part


def refused_pickle(error: BaseException | None) -> bool:
    """Whether torch.load(weights_only=True), by which diffusers and transformers read .bin files, has refused one."""
    from pickle import UnpicklingError

    return error is not None and (isinstance(error, UnpicklingError) or refused_pickle(error.__cause__ or error.__context__))


def state_scaling_factor(autoencoder: nn.Module, folder: Path) -> None:
    """Latents of a VQModel whose config.json does not tell a scaling_factor are not scaled, as in CompVis' LDM.

    diffusers fills in Stable Diffusion's 0.18215, with which ldm-celebahq-256 draws blots (diffusers, issue 6725).
    """
    if "scaling_factor" not in json.loads((folder / "config.json").read_text()):
        autoencoder.register_to_config(scaling_factor=1.0)


def load_teacher(name_or_path: str, revision: str | None = None) -> Teacher:
    """Loads a shipped teacher by name, a local diffusers pipeline folder, or a hub repository, in float32 on the CPU.

    Raises InputError with one line for a missing folder, an unreachable hub, a missing part or a damaged file.
    """
    folder = find_folder(name_or_path, revision)
    index = read_index(folder)
    named = {name: value for name, value in index.items() if name in PARTS and isinstance(value, list) and value[0]}
    check_named_parts(folder, named)
    parts = {name: load_part(folder, name, *value, network=name in NETWORKS) for name, value in named.items()}
    teacher = Teacher(
        name=Path(name_or_path).name,
        folder=folder,
        denoiser=parts["unet"],
        autoencoder=parts.get("vae") or parts["vqvae"],
        scheduler=parts["scheduler"],
        tokenizer=parts.get("tokenizer"),
        text_encoder=parts.get("text_encoder"),
        tokenizer_2=parts.get("tokenizer_2"),
        text_encoder_2=parts.get("text_encoder_2"),
        zeros_for_empty="text_encoder_2" in parts and bool(index.get("force_zeros_for_empty_prompt", True)),
    )
    check_parts_fit(folder, teacher.denoiser, teacher.autoencoder, teacher.text_encoders)
    return teacher


def read_index(folder: Path) -> dict[str, Any]:
    """model_index.json of a pipeline folder; InputError when it is not JSON."""
    return read_json(folder / "model_index.json")


def read_json(path: Path) -> dict[str, Any]:
    """A file of a pipeline folder; InputError when it is not JSON."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:  # not JSON, or not text
        raise InputError(f"{path} is not JSON: {error}.") from error


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
