"""One part of a pipeline folder, loaded and checked."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.diffusion.latents import check_scaling
from common.diffusion.text_encoding import check_vocabulary
from common.errors import InputError, first_line
from common.models.honoured_settings import check_settings, config_file
from common.models.weight_checks import check_numbers, check_stored_types
from common.models.weight_files import best_weights
from common.runtime.regular_files import why_no_file
from common.runtime.strict_json import read_json

LFS_POINTER = 1024  # bytes: more than a pointer has


def without_library_bars() -> None:
    """Keeps diffusers and transformers from drawing bars while they load and save: the project's own tell of it."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()


def class_of(library: str, class_name: str) -> Any:
    """The class that an index names, of diffusers, transformers, or a pruned one of this project; None where there is none.

    "pruned_unet" is what students that were saved before transformers were known name.
    """
    import diffusers
    import transformers

    from common.pruning import pruned_denoiser

    own = dict.fromkeys(("pruned_denoiser", "pruned_unet"), pruned_denoiser)
    return getattr({"diffusers": diffusers, "transformers": transformers, **own}.get(library), class_name, None)


def load_part(folder: Path, name: str, library: str, class_name: str, network: bool) -> Any:
    """One part of a pipeline folder, by the library and class that model_index.json names; `network`: it has weights."""
    without_library_bars()
    if not (folder / name).is_dir():
        raise InputError(f"{folder} lacks its part {name!r} ({class_name}), which model_index.json names.")
    settings = config_file(folder, name)
    check_settings(str(settings), class_name, read_json(settings) if settings.is_file() else {})
    kind = class_of(library, class_name)
    if kind is None:
        raise InputError(f"{folder / name}: {library} has no {class_name}.")
    for path in sorted((folder / name).iterdir()):
        reason = None if path.is_dir() else why_no_file(path)
        if reason is not None:  # a pipe would be waited for
            raise InputError(f"{path} is {reason}; a file is needed.")
        if path.stat().st_size < LFS_POINTER and path.read_bytes().startswith(b"version https://git-lfs"):
            raise InputError(f"{path} is a pointer of Git LFS, not the file itself: git lfs pull brings it.")
    options: dict[str, Any] = {}
    if network:
        weights = best_weights(path.name for path in (folder / name).iterdir())
        if weights is None:
            raise InputError(f"{folder / name} holds no weights of {class_name} (.safetensors or .bin).")
        options = {"torch_dtype": torch.float32, "output_loading_info": True, **weights.options()}
        if library != "transformers":
            options["low_cpu_mem_usage"] = False
    try:
        if network:
            check_stored_types(folder / name, weights)
        part = kind.from_pretrained(folder / name, local_files_only=True, **options)
    except InputError:
        raise
    except Exception as error:  # safetensors, JSON, pickle and torch each raise their own kind for a damaged file
        raise InputError(f"{folder / name} cannot be loaded as {class_name}: {failure(error)}") from error
    if network:
        part, report = part
        absent = sorted(report["missing_keys"])
        if absent:
            raise InputError(f"{folder / name} lacks {len(absent)} of the weights of {class_name}, {absent[0]} among them.")
        unread = sorted(report["unexpected_keys"])
        if unread and library != "transformers":  # an encoder's file may hold a whole CLIP, of which the text half is read
            raise InputError(
                f"{folder / name} holds {len(unread)} weights that a {class_name} of its configuration does not have, "
                f"{unread[0]} among them: config.json is of another network, or lacks entries."
            )
        check_numbers(folder / name, part)
        for parameter in part.parameters():  # weights mapped from a file lie unaligned, and then sums round differently
            parameter.data = parameter.data.clone()
        if class_name == "VQModel":
            state_scaling_factor(part, folder / name)
        if name in ("vae", "vqvae"):
            check_scaling(config_file(folder, name), part)
    if name.startswith("tokenizer"):
        check_vocabulary(part, folder / name)
    return part.eval().requires_grad_(False) if isinstance(part, nn.Module) else part


def failure(error: Exception) -> str:
    """The first line of what an error says, and of torch's list of what does not fit the first entry."""
    if refused_pickle(error):
        return "it holds more than tensors, of which nothing was run"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines and lines[0].endswith(":") else first_line(error)


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
