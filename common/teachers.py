"""A trained latent diffusion model as one thing: denoiser, autoencoder, scheduler and text conditioner."""

import copy
import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.errors import InputError
from common.files import SHIPPED, whole_folder
from common.sampling import Conditions, describe_scheduler

NETWORKS = ("unet", "vae", "vqvae", "text_encoder")
PARTS = (*NETWORKS, "scheduler", "tokenizer")


@dataclass
class Teacher:
    """The parts of a diffusers pipeline that pruning and distillation need.

    latent_shape is (channels, height, width) of one latent; tokenizer and text_encoder are None without text.
    """

    name: str
    folder: Path
    denoiser: nn.Module
    autoencoder: nn.Module
    scheduler: Any
    tokenizer: Any = None
    text_encoder: nn.Module | None = None
    _fingerprint: str = ""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        size = self.denoiser.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return (self.denoiser.config.in_channels, height, width)

    def with_parts(self, **parts: nn.Module) -> "Teacher":
        """The same pipeline with other networks: with_parts(denoiser=student)."""
        return replace(self, **parts, _fingerprint="")

    def to(self, device: str | torch.device) -> "Teacher":
        for network in (self.denoiser, self.autoencoder, self.text_encoder):
            if network is not None:
                network.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @torch.no_grad()
    def encode_captions(self, captions: list[str], batch_size: int = 512) -> Conditions:
        """The denoiser's keyword arguments for the captions: token states (captions, tokens, width); {} without text."""
        if self.text_encoder is None:
            return {}
        states = []
        for start in range(0, len(captions), batch_size):
            ids = self.tokenizer(
                captions[start : start + batch_size], padding="max_length", truncation=True, return_tensors="pt"
            ).input_ids
            states.append(self.text_encoder(ids.to(self.device)).last_hidden_state)
        return {"encoder_hidden_states": torch.cat(states)}

    def empty_condition(self) -> Conditions:
        """The condition of no caption, one row."""
        return self.encode_captions([""])

    @torch.no_grad()
    def encode_images(self, images: torch.Tensor, batch_size: int = 64, advance: Any = lambda count: None) -> torch.Tensor:
        """Latents (count, *latent_shape) of uint8 images (count, 3, height, width): posterior means, scaled."""
        finished = []
        for chunk in images.split(batch_size):
            encoded = self.autoencoder.encode(chunk.to(self.device).float() / 127.5 - 1)
            latents = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents
            finished.append(latents.cpu() * self.autoencoder.config.scaling_factor)
            advance(len(chunk))
        return torch.cat(finished)

    @torch.no_grad()
    def decode_latents(self, latents: torch.Tensor, batch_size: int = 64) -> torch.Tensor:
        """uint8 images (count, 3, height, width) on the CPU from latents (count, *latent_shape)."""
        from common.pictures import to_uint8

        scale = self.autoencoder.config.scaling_factor
        chunks = latents.split(batch_size)
        return torch.cat([to_uint8(self.autoencoder.decode(chunk.to(self.device) / scale).sample).cpu() for chunk in chunks])

    def fingerprint(self) -> str:
        """Changes with any weight of the denoiser, autoencoder or text encoder, and with the scheduler."""
        if self._fingerprint:
            return self._fingerprint
        digest = hashlib.sha256(describe_scheduler(self.scheduler).encode())
        for network in (self.denoiser, self.autoencoder, self.text_encoder):
            for name, tensor in network.state_dict().items() if network is not None else ():
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint


def shipped_teachers() -> list[str]:
    """The names of the teachers that come with the project."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/model_index.json"))


def find_folder(name_or_path: str, revision: str | None = None) -> Path:
    """The local folder of a shipped teacher, of a path, or of a hub repository "owner/name" (downloaded once)."""
    if (SHIPPED / name_or_path / "model_index.json").is_file():
        return SHIPPED / name_or_path
    folder = Path(name_or_path)
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise InputError(f"{folder} has no model_index.json: it is not a diffusers pipeline folder.")
        return folder
    if name_or_path.count("/") != 1 or name_or_path.startswith((".", "/", "~")):
        raise InputError(
            f"There is no teacher {name_or_path!r}: shipped are {', '.join(shipped_teachers()) or 'none'}; "
            "else give the path of a diffusers folder or a hub name 'owner/name'."
        )
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.txt", *(f"{part}/{kind}" for part in PARTS for kind in ("*.json", "*.txt", "*.safetensors"))]
    unwanted = ["*.fp16.*", "*.non_ema.*", "safety_checker/*", "feature_extractor/*"]
    try:
        return Path(snapshot_download(name_or_path, revision=revision, allow_patterns=wanted, ignore_patterns=unwanted))
    except Exception as error:  # the hub's client raises many kinds: offline, gated, absent, refused
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"The hub repository {name_or_path!r} cannot be read ({reason}); "
            "download it elsewhere and give teacher.path=<folder>."
        ) from error


def load_part(folder: Path, name: str, library: str, class_name: str, network: bool) -> Any:
    """One part of a pipeline folder, by the library and class that model_index.json names; `network`: it has weights."""
    import diffusers
    import transformers

    from common import pruned_unet

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    module = {"diffusers": diffusers, "transformers": transformers, "pruned_unet": pruned_unet}.get(library)
    if module is None or not hasattr(module, class_name):
        raise InputError(f"{folder / name}: {library}.{class_name} is not a class this project can load.")
    if not (folder / name).is_dir():
        raise InputError(f"{folder} lacks its part {name!r} ({class_name}), which model_index.json names.")
    options = {"torch_dtype": torch.float32, "output_loading_info": True} if network else {}
    if library != "transformers" and network:
        options["low_cpu_mem_usage"] = False
    try:
        part = getattr(module, class_name).from_pretrained(folder / name, local_files_only=True, **options)
    except InputError:
        raise
    except Exception as error:  # safetensors, JSON and torch each raise their own kind for a damaged file
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{folder / name} cannot be loaded as {class_name}: {reason}") from error
    if network:
        part, report = part
        absent = sorted(report["missing_keys"])
        if absent:
            raise InputError(f"{folder / name} lacks {len(absent)} of the weights of {class_name}, {absent[0]} among them.")
        for parameter in part.parameters():  # weights mapped from a file lie unaligned, and then sums round differently
            parameter.data = parameter.data.clone()
    return part.eval().requires_grad_(False) if isinstance(part, nn.Module) else part


def load_teacher(name_or_path: str, revision: str | None = None) -> Teacher:
    """Loads a shipped teacher by name, a local diffusers pipeline folder, or a hub repository, in float32 on the CPU.

    Raises InputError with one line for a missing folder, an unreachable hub, a missing part or a damaged file.
    """
    folder = find_folder(name_or_path, revision)
    try:
        index = json.loads((folder / "model_index.json").read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{folder / 'model_index.json'} is not JSON: {error}.") from error
    named = {name: value for name, value in index.items() if name in PARTS and isinstance(value, list) and value[0]}
    if "unet" not in named:
        raise InputError(f"{folder} has no U-Net: its model_index.json names {', '.join(sorted(named)) or 'no parts'}.")
    if index.get("text_encoder_2", [None])[0]:
        raise InputError(f"{folder} has two text encoders (Stable Diffusion XL), which jobs cannot condition on yet.")
    parts = {name: load_part(folder, name, *value, network=name in NETWORKS) for name, value in named.items()}
    autoencoder = parts.get("vae") or parts.get("vqvae")
    if autoencoder is None or "scheduler" not in parts:
        raise InputError(f"{folder} needs an autoencoder ('vae' or 'vqvae') and a 'scheduler'.")
    return Teacher(
        name=Path(name_or_path).name,
        folder=folder,
        denoiser=parts["unet"],
        autoencoder=autoencoder,
        scheduler=parts["scheduler"],
        tokenizer=parts.get("tokenizer"),
        text_encoder=parts.get("text_encoder"),
    )


def autoencoder_part(folder: Path) -> str:
    """The name of the autoencoder in a pipeline folder: "vae" or "vqvae"."""
    index = json.loads((folder / "model_index.json").read_text())
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


def load_student(teacher: Teacher, folder: Path) -> Teacher:
    """The pipeline that save_student wrote; parts without weights of their own in `folder` are the teacher's."""
    return teacher.with_parts(denoiser=load_denoiser(folder), autoencoder=load_autoencoder(folder))


def save_student(teacher: Teacher, student: Teacher, folder: Path) -> None:
    """Writes the student as a pipeline folder in the teacher's layout, fp16 weights, whole or not at all.

    A part that is the very network of the teacher is copied from the teacher's folder.
    diffusers loads it with DiffusionPipeline.from_pretrained(folder, trust_remote_code=True), without this project.
    """
    index = json.loads((teacher.folder / "model_index.json").read_text())
    pruned = type(student.denoiser).__name__.startswith("Pruned")
    index["unet"] = ["pruned_unet" if pruned else "diffusers", type(student.denoiser).__name__]
    own = {"unet": student.denoiser}
    if student.autoencoder is not teacher.autoencoder:
        own[autoencoder_part(teacher.folder)] = student.autoencoder
    with whole_folder(folder) as scratch:
        for name in index:
            if name in (*PARTS, "mel") and name not in own and (teacher.folder / name).is_dir():
                shutil.copytree(teacher.folder / name, scratch / name)
        for name, network in own.items():
            copy.deepcopy(network).cpu().half().save_pretrained(scratch / name)
        (scratch / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
        forget_origins(scratch)


def forget_origins(folder: Path) -> None:
    """Takes the path that a part was once loaded from, which diffusers records, out of every config.json in `folder`."""
    for path in folder.rglob("config.json"):
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2) + "\n")


def save_whole(part: Any, folder: Path) -> None:
    """part.save_pretrained(folder), whole or not at all, without the path that the part was once loaded from."""
    with whole_folder(folder) as scratch:
        part.save_pretrained(scratch)
        forget_origins(scratch)
