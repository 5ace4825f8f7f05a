"""What diffusers' pipelines set themselves, whatever the folder of the teacher says."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from common.denoisers.denoiser import architecture_of
from common.diffusion.autoencoders import pixels_per_latent
from common.errors import InputError
from common.models.latent_diffusion import LatentDiffusion

PATCHED = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")
"""Those that mend configurations of early versions when they are built."""
LARGE_SIZE = 128  # of latents, where a network tells none
OF_LARGE_SIZE = ("StableDiffusionXL", "Flux", "QwenImage")  # pipelines that take it then
EARLY_SIZE = 64  # of Stable Diffusion 1, where a version of diffusers before EARLY_VERSION has written less
EARLY_VERSION = "0.9.0"
BINNED_SIZES = (32, 64, 128)  # of latents, to whose aspect ratios PixArt's and Sana's pipelines round


def settle_scheduler(index: dict[str, Any], scheduler: Any) -> Any:
    """The scheduler as the pipeline of `index` uses it: Stable Diffusion's has steps_offset=1 and clip_sample=False."""
    if index.get("_class_name") not in PATCHED:
        return scheduler
    wanted = {"steps_offset": 1, "clip_sample": False}
    changed = {name: value for name, value in wanted.items() if scheduler.config.get(name, value) != value}
    if not changed:
        return scheduler
    settings = dict(scheduler.config)
    left = [name for name in settings.get("_use_default_values", []) if name not in changed]
    return type(scheduler).from_config({**settings, **changed, "_use_default_values": left})


def settle_sample_size(folder: Path, index: dict[str, Any], denoiser: nn.Module) -> None:
    """States the size of latents that the pipeline of `index` takes; InputError for one that is none, or not told at all."""
    from packaging.version import parse

    size, name = denoiser.config.get("sample_size"), str(index.get("_class_name", ""))
    version = parse(parse(denoiser.config.get("_diffusers_version") or EARLY_VERSION).base_version)
    if size is None and name.startswith(OF_LARGE_SIZE):
        denoiser.register_to_config(sample_size=LARGE_SIZE)
    elif size is None:
        raise InputError(
            f"{folder}: {architecture_of(denoiser).part}/config.json tells no sample_size; write the height of its latents "
            "there (64 for images of 512 pixels and an autoencoder of 8), or [height, width]."
        )
    elif name in PATCHED and isinstance(size, int) and size < EARLY_SIZE and version < parse(EARLY_VERSION):
        denoiser.register_to_config(sample_size=EARLY_SIZE)
    else:
        sides = [size, size] if isinstance(size, int) else size
        if not isinstance(sides, list | tuple) or len(sides) != 2 or not all(type(n) is int and n > 0 for n in sides):
            part = architecture_of(denoiser).part
            raise InputError(f"{folder}: {part}/config.json sets sample_size={size!r}: one or two numbers above 0 are needed.")


def text_length(index: dict[str, Any]) -> int | None:
    """How many tokens the pipeline of `index` lets its last tokenizer give; None: as many as it does.

    PixArt-Sigma's and Sana's 300, Stable Diffusion 3's 256, FLUX's and Qwen-Image's 512.
    """
    return call_default(index, "max_sequence_length")


def told_guidance(folder: Path, index: dict[str, Any], denoiser: nn.Module) -> float:
    """The guidance scale with which the pipeline of `index` is called unless it is told another: 1 where it takes none.

    InputError where the denoiser learns with the scale as an input (FLUX.1-dev) and the index names no such pipeline.
    """
    scale = call_default(index, "guidance_scale")
    if scale is None and "guidance" in architecture_of(denoiser).guidance(denoiser, 1.0):
        raise InputError(
            f"{folder}/model_index.json names no pipeline (_class_name) at whose guidance scale its {type(denoiser).__name__}, "
            "which is told one, could be trained."
        )
    return 1.0 if scale is None else float(scale)


def check_pipeline_fits(folder: Path, index: dict[str, Any], denoiser: nn.Module) -> None:
    """InputError where the pipeline that the index names draws with a transformer of another class, or none tells how text
    is read (Sana)."""
    import diffusers

    architecture, own = architecture_of(denoiser), type(denoiser).__name__
    kind: Any = getattr(diffusers, str(index.get("_class_name", "")), None)
    part = inspect.signature(kind.__init__).parameters.get(architecture.part) if isinstance(kind, type) else None
    if architecture.part == "transformer" and part is not None:
        wanted = part.annotation
        if isinstance(wanted, type) and not isinstance(denoiser, wanted):
            raise InputError(f"{folder}: a {kind.__name__} draws with a {wanted.__name__}, and its transformer is a {own}.")
    if architecture.reads_text == "instructed" and call_default(index, "complex_human_instruction") is None:
        raise InputError(
            f"{folder}/model_index.json names no pipeline (_class_name) that tells the instruction with which captions of its "
            f"{own} are read: SanaPipeline does."
        )


def call_default(index: dict[str, Any], argument: str) -> Any:
    """What the pipeline of `index` takes for an argument of its call; None where it is of no class or takes no such one."""
    import diffusers

    kind: Any = getattr(diffusers, str(index.get("_class_name", "")), None)
    found = inspect.signature(kind.__call__).parameters.get(argument) if callable(kind) else None
    return None if found is None else found.default


def call_options(index: dict[str, Any], teacher: LatentDiffusion) -> dict[str, Any]:
    """What a call of the teacher's pipeline, that of `index`, has to be told, besides the prompt, to draw as this project does.

    Its own number of tokens where its text encoder has places for fewer, a size that the class of pipelines would not take of
    itself, and that one which PixArt's or Sana's does not know stays.
    """
    import diffusers

    kind: Any = getattr(diffusers, str(index.get("_class_name", "")), None)
    known = inspect.signature(kind.__call__).parameters if callable(kind) else {}
    found: dict[str, Any] = {}
    length = text_length(index)
    if length is not None and teacher.tokenizers and teacher.tokenizers[-1].model_max_length < length:
        found["max_sequence_length"] = teacher.tokenizers[-1].model_max_length
    height = call_default(index, "height")  # Sana's tells one, and FLUX's and Qwen-Image's have one of their own
    if height is None and str(index.get("_class_name", "")).startswith(("Flux", "QwenImage")):
        height = LARGE_SIZE * pixels_per_latent(teacher.autoencoder.config)
    if height is not None and teacher.image_size != (height, height):
        found |= dict(zip(("height", "width"), teacher.image_size, strict=True))
    if "use_resolution_binning" in known and teacher.latent_shape[1] not in BINNED_SIZES:
        found["use_resolution_binning"] = False
    return found


def settle_text_length(index: dict[str, Any], tokenizers: Sequence[Any]) -> None:
    """Gives the last tokenizer no more tokens than the pipeline of `index` takes."""
    length = text_length(index)
    if tokenizers and length is not None:
        tokenizers[-1].model_max_length = min(tokenizers[-1].model_max_length, length)
