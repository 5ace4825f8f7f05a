"""A pipeline in one file, in the layout of Stable Diffusion's own code, made into a folder of diffusers once.

What the file does not hold (tokenizers, the scheduler, the sizes of the networks) is read from the folder of a pipeline of the
same family; that one's weights are not.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from torch import nn

from common.errors import InputError, first_line
from common.models.honoured_settings import check_pipeline_settings, named_parts
from common.models.parts import failure
from common.models.weight_files import weight_format
from common.runtime.content import content_name, path_content
from common.runtime.files import user_cache, whole_folder
from common.runtime.locks import locked
from common.runtime.strict_json import read_json

ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
LAYOUTS = ("model.diffusion_model.",)  # how the names of the U-Net's weights begin
NEEDED = ("unet", "vae", "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")


def is_single_file(path: str) -> bool:
    """Whether a teacher's path is that of a file, and not of a folder or a hub's repository."""
    place = Path(path).expanduser()
    return place.is_file() or (place.suffix.lower() in ENDINGS and not place.is_dir())


def folder_of_file(path: str, config: str | None) -> Path:
    """The pipeline folder that the file's weights and the settings of the folder `config` make, kept in the user's cache.

    InputError without such a folder, and for a file that is not whole or holds more than tensors, of which nothing is run.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(f"There is no file teacher.path={path}.")
    if file.suffix.lower() not in ENDINGS:
        raise InputError(f"teacher.path={path} is a file of none of the kinds {', '.join(ENDINGS)}: give one, or a folder.")
    if config is None:
        raise InputError(
            f"teacher.path={path} is a single file: give teacher.config=<folder>, a diffusers pipeline of the same family "
            "(Stable Diffusion 1, 2 or XL; its weights are not read), by whose settings it is read."
        )
    folder = Path(config).expanduser()
    if not (folder / "model_index.json").is_file():
        raise InputError(f"teacher.config={config} has no model_index.json: it is not a diffusers pipeline folder.")
    index = read_json(folder / "model_index.json")
    check_pipeline_settings(folder, index)
    check_layout(file)
    settings = sorted(each for each in folder.rglob("*") if each.is_file() and is_settings(each, folder))
    content = content_name([path_content(each) for each in (file, *settings)])
    converted = user_cache() / "single_files" / f"{file.stem}-{content}"
    with locked(converted.with_name(f"{converted.name}.lock"), f"{file} is being converted"):
        if not converted.is_dir():
            print(f"{file} is converted to {converted}, which takes as much space again, and up to twice that", flush=True)
            with tempfile.TemporaryDirectory() as scratch, whole_folder(converted) as target:
                for each in settings:
                    copied = Path(scratch, each.relative_to(folder))
                    copied.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(each, copied)
                convert(file, Path(scratch), index, target)
    return converted


def check_layout(file: Path) -> None:
    """InputError for a file of safetensors that is cut or damaged, or of whose weights none has a name of a known layout."""
    from safetensors import SafetensorError, safe_open

    if file.suffix.lower() != ".safetensors":
        return
    try:
        with safe_open(file, "pt") as opened:
            names = list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise InputError(f"teacher.path={file} is cut or damaged: {first_line(error).rstrip('.')}.") from error
    if not any(name.startswith(LAYOUTS) for name in names):
        told = f"its weights are called {names[0]} and so on" if names else "it holds no weights"
        raise InputError(
            f"teacher.path={file} is of no known family, Stable Diffusion 1, 2 or XL in the names of its own code "
            f"({LAYOUTS[0]}...): {told}."
        )


def is_settings(path: Path, folder: Path) -> bool:
    """Whether a file of a pipeline folder is one that tells how its parts are built, and no weights."""
    inside = path.relative_to(folder).parts
    known = len(inside) == 1 or (len(inside) == 2 and inside[0] in NEEDED)
    return known and path.suffix in (".json", ".txt", ".model") and weight_format(path.name) is None


def convert(file: Path, settings: Path, index: dict[str, Any], target: Path) -> None:
    """Writes the pipeline of `file` into the folder `target`, its parts built by the folder `settings` without weights."""
    import diffusers

    parts = {name: pair for name, pair in named_parts(index).items() if name in NEEDED}
    others = {name: [None, None] for name in named_parts(index) if name not in NEEDED}
    written = json.dumps({**index, **others, "requires_safety_checker": False})
    (settings / "model_index.json").write_text(written, encoding="utf-8")
    kind = getattr(diffusers, str(index.get("_class_name")), None)
    if not hasattr(kind, "from_single_file") or not {"unet", "vae", "scheduler"} <= set(parts):
        raise InputError(
            f"teacher.config: single files are read of Stable Diffusion 1, 2 and XL, not of {index.get('_class_name')}."
        )
    diffusers.utils.logging.disable_progress_bar()
    try:
        with whole_networks(file):
            pipeline = kind.from_single_file(str(file), config=str(settings), local_files_only=True, low_cpu_mem_usage=False)
    except InputError:
        raise
    except Exception as error:  # torch, safetensors, diffusers and transformers each raise their own kind
        told = f"teacher.path={file} cannot be read as {kind.__name__} by the settings of teacher.config"
        raise InputError(f"{told}: {failure(error)}") from error
    pipeline.save_pretrained(target)


@contextmanager
def whole_networks(file: Path) -> Iterator[None]:
    """InputError for a network whose weights are not all in the file: diffusers would leave random ones, without a word."""
    load = nn.Module.load_state_dict

    def strictly(network: nn.Module, state: Any, strict: bool = True, **options: Any) -> Any:
        found = load(network, state, strict=False, **options)
        absent = [name for name in found.missing_keys if not name.endswith("position_ids")]
        unread = [] if type(network).__module__.startswith("transformers") else found.unexpected_keys
        for names, what in ((absent, "lacks"), (unread, "holds, beyond the settings of teacher.config,")):
            if names:
                raise InputError(f"{file} {what} {len(names)} weights of the {type(network).__name__}, {names[0]} among them.")
        return found

    from diffusers.loaders import single_file_utils

    with (
        mock.patch.object(nn.Module, "load_state_dict", strictly),
        mock.patch.object(single_file_utils, "is_accelerate_available", lambda: False),  # it loads without telling
    ):
        yield
