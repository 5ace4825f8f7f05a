"""Students as pipeline folders: what is written, in the teacher's layout, and read again."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from common.models.hub import PARTS, TEXT_ENCODERS, denoiser_part
from common.models.latent_diffusion import LatentDiffusion
from common.models.loading import autoencoder_part, load_autoencoder, load_denoiser, read_index
from common.models.parts import without_library_bars
from common.models.weight_files import best_weights, weight_format
from common.runtime.files import whole_folder
from common.runtime.strict_json import to_json


def load_student(teacher: LatentDiffusion, folder: Path) -> LatentDiffusion:
    """The pipeline that save_student wrote; parts without weights of their own in `folder` are the teacher's."""
    return teacher.with_parts(denoiser=load_denoiser(folder), autoencoder=load_autoencoder(folder))


def save_student(teacher: LatentDiffusion, student: LatentDiffusion, folder: str | Path) -> None:
    """Writes the student as a pipeline folder in the teacher's layout, whole or not at all.

    A part that is the very network of the teacher is copied from the teacher's folder; what is not, and what is there as a
    variant alone, is written in fp16. What the teacher's index names and its folder lacks (a safety checker) is left out.
    diffusers loads it with DiffusionPipeline.from_pretrained(folder, trust_remote_code=True), without this project.
    """
    index = read_index(teacher.folder)
    pruned = type(student.denoiser).__name__.startswith("Pruned")
    denoiser = denoiser_part(index)
    index[denoiser] = ["pruned_denoiser" if pruned else "diffusers", type(student.denoiser).__name__]
    autoencoder = autoencoder_part(teacher.folder)
    own = {denoiser: student.denoiser}
    for name, attribute in ((autoencoder, "autoencoder"), *((each, each) for each in TEXT_ENCODERS)):
        part = getattr(student, attribute)
        if part is not getattr(teacher, attribute) or variant_alone(teacher.folder / name):
            own[name] = part
    with whole_folder(Path(folder)) as scratch:
        for name in index:
            if name in (*PARTS, "mel") and name not in own and (teacher.folder / name).is_dir():
                shutil.copytree(teacher.folder / name, scratch / name, ignore=other_weights)
        for name, network in own.items():
            copy.deepcopy(network).cpu().half().save_pretrained(scratch / name)
        for name, value in index.items():
            if isinstance(value, list) and not name.startswith("_") and not (scratch / name).is_dir():
                index[name] = [None, None]
        write_scaling_factor(scratch / autoencoder, student.autoencoder)
        (scratch / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        clean_configs(scratch)


def variant_alone(folder: Path) -> bool:
    """Whether the weights in a part's folder are a variant (fp16) only, which diffusers loads when it is asked for by name."""
    best = best_weights(path.name for path in folder.iterdir()) if folder.is_dir() else None
    return best is not None and best.variant != ""


def write_scaling_factor(folder: Path, autoencoder: nn.Module) -> None:
    """States the scaling factor in a config.json that leaves it to diffusers' default (see state_scaling_factor)."""
    config = json.loads((folder / "config.json").read_text())
    if "scaling_factor" not in config and "scaling_factor" in autoencoder.config:
        written = {**config, "scaling_factor": autoencoder.config.scaling_factor}
        (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def other_weights(folder: str, names: list[str]) -> list[str]:
    """The weight files of a folder that are not read where there are several sorts (for shutil.copytree)."""
    best = best_weights(names)
    return [name for name in names if weight_format(name) not in (None, best)]


def clean_configs(folder: Path) -> None:
    """Takes out of every config.json in `folder` the path that a part was once loaded from, which diffusers records.

    And states float32 where transformers has recorded float16: what is on the disk in fp16, diffusers loads in float32 without
    being asked, and transformers as recorded, so that a pipeline of both could not draw.
    """
    for path in folder.rglob("config.json"):
        config = json.loads(path.read_text())
        cleaned = {name: value for name, value in config.items() if name != "_name_or_path"}
        cleaned |= {name: "float32" for name in ("dtype", "torch_dtype") if cleaned.get(name) == "float16"}
        if cleaned != config:
            path.write_text(to_json(cleaned, indent=2) + "\n", encoding="utf-8")


def save_whole(part: Any, folder: Path) -> None:
    """part.save_pretrained(folder), whole or not at all, with clean_configs."""
    without_library_bars()
    with whole_folder(Path(folder)) as scratch:
        part.save_pretrained(scratch)
        clean_configs(scratch)
