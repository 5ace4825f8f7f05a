"""A LoRA (Hu et al. 2021, arXiv 2106.09685) added to the weights of a teacher, as diffusers reads and adds it.

Which weights of the file have a place in the networks is checked before: diffusers leaves others out with a warning.
"""

import inspect
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.errors import InputError, first_line
from common.models.hub import DENOISERS, denoiser_part
from common.models.weight_files import weight_format
from common.pruning.plan import MASK, Plan
from common.runtime.regular_files import why_no_file

ENDINGS = re.compile(r"\.(?:lora_[AB]|lora\.(?:down|up)|lora_linear_layer\.(?:down|up)|lora_magnitude_vector)(?:\..*)?$")
OLD_NAMES = re.compile(r"\.processor\.(to_(?:q|k|v|out))_lora\.(?:down|up)\.weight$")
SHOWN = 10  # keys in a message
KEEPING = (MASK, "resize")  # edits after which a module is still there

Weights = dict[str, torch.Tensor]


def module_of(key: str) -> str:
    """The module that a weight of a LoRA belongs to: "unet.mid_block.attentions.0.proj_in"."""
    old = OLD_NAMES.search(key)
    if old is not None:
        return f"{key[: old.start()]}.{old[1]}" + (".0" if old[1] == "to_out" else "")
    return ENDINGS.sub("", key)


def find_module(networks: Mapping[str, nn.Module], name: str) -> nn.Module | None:
    """The module of one of the networks by the name in a LoRA, whose text encoders may have an outer `text_model`."""
    part, _, inside = name.partition(".")
    network = networks.get(part)
    for path in (inside, inside.removeprefix("text_model."), f"text_model.{inside}"):
        try:
            if network is not None:
                return network.get_submodule(path)
        except AttributeError:
            continue
    return None


def misfits(networks: Mapping[str, nn.Module], weights: Mapping[str, Any]) -> list[str]:
    """The weights of a LoRA that have no place in the networks, each with the reason."""
    found = []
    for key, weight in weights.items():
        module = find_module(networks, module_of(key))
        if module is None:
            found.append(f"{key} (no such module)")
            continue
        own: Any = getattr(module, "weight", None)
        down = re.search(r"(lora_A|\bdown\b)", key) is not None
        up = re.search(r"(lora_B|\bup\b)", key) is not None
        if own is None or (down and weight.shape[1] != own.shape[1]) or (up and weight.shape[0] != own.shape[0]):
            shape = "none" if own is None else tuple(own.shape)
            found.append(f"{key} (of {tuple(weight.shape)}, for weights of {shape})")
    return found


def read_lora(kind: str, path: str, unet: nn.Module) -> tuple[Weights, dict[str, Any], dict[str, Any]]:
    """The weights of a LoRA for pipelines of the class `kind` by diffusers' names, their alphas, and what else the file tells.

    InputError for a pipeline that takes none, without peft, by which diffusers adds it, and for a file that holds none.
    """
    import diffusers

    pipeline_class = getattr(diffusers, kind, None)
    if not hasattr(pipeline_class, "load_lora_weights"):
        raise InputError(
            f"The LoRA {path}: a {kind} takes none; Stable Diffusion 1, 2, XL and 3, FLUX, Sana and Qwen-Image do."
        )
    if find_spec("peft") is None:
        raise InputError(f'The LoRA {path} needs peft: pip install -c constraints.txt -e ".[lora]"')
    place = lora_file(path)
    options = {"unet_config": unet.config} if "XL" in kind else {}  # names of blocks in Kohya's files are told by it
    try:
        weights, *alphas, told = pipeline_class.lora_state_dict(  # of transformers without alphas, which are in the weights
            str(place.parent), weight_name=place.name, local_files_only=True, return_lora_metadata=True, **options
        )
    except Exception as error:  # safetensors, torch and diffusers each raise their own kind
        raise InputError(f"{path} cannot be read as a LoRA: {first_line(error)}.") from error
    wrong = [key for key in weights if "lora" not in key]
    if wrong or not weights:
        raise InputError(f"{path} holds no LoRA: {', '.join(wrong[:SHOWN]) or 'no weights'}.")
    return weights, next(iter(alphas), None) or {}, told or {}


def fuse_lora(kind: str, parts: dict[str, Any], path: str, scale: float) -> None:
    """Adds scale times the LoRA in a file, or in a folder, to the networks among `parts`, which are changed.

    kind: the class of the pipeline that the parts, by their names there, are of. InputError where the file cannot be read, and
    where weights in it have no place in the networks (ten at most are named).
    """
    import diffusers

    weights, _, _ = read_lora(kind, path, parts[denoiser_part(parts)])
    networks = {name: part for name, part in parts.items() if isinstance(part, nn.Module)}
    unfit = misfits(networks, weights)
    if unfit:
        more = f", and {len(unfit) - SHOWN} more" if len(unfit) > SHOWN else ""
        raise InputError(
            f"The LoRA {path}: {len(unfit)} of its {len(weights)} weights do not fit the teacher: "
            f"{'; '.join(unfit[:SHOWN])}{more}. It is of another model."
        )
    pipeline_class, place = getattr(diffusers, kind), lora_file(path)
    taken = inspect.signature(pipeline_class.__init__).parameters
    needed = {name: parts.get(name) for name, each in taken.items() if name != "self" and each.default is each.empty}
    if "requires_safety_checker" in taken:
        needed["requires_safety_checker"] = False
    pipeline = pipeline_class(**needed)
    pipeline.load_lora_weights(str(place.parent), weight_name=place.name, local_files_only=True)
    pipeline.fuse_lora(lora_scale=scale)
    pipeline.unload_lora_weights()


def lora_file(path: str) -> Path:
    """The file of a LoRA: `path` itself, or the only file of weights in that folder."""
    place = Path(path).expanduser()
    if place.is_dir():
        inside = sorted(
            each for each in place.iterdir() if weight_format(each.name) is not None or each.suffix == ".safetensors"
        )
        if len(inside) != 1:
            raise InputError(f"{path} holds {len(inside)} files of weights: name one.")
        return inside[0]
    reason = why_no_file(place)
    if reason is not None:
        raise InputError(f"The LoRA {path} cannot be read: it is {reason}.")
    return place


def with_own_scale(weights: Weights, alphas: Mapping[str, Any], told: Mapping[str, Any]) -> Weights:
    """The weights with alpha / rank multiplied into the second matrix of each pair, so that they need no alpha beside them."""
    found = dict(weights)
    for key in weights:
        module = module_of(key)
        if not re.search(r"(lora_B|\bup\b)", key):
            continue
        part, _, inside = module.partition(".")
        own = told.get(f"{part}.alpha_pattern", {}).get(inside, told.get(f"{part}.lora_alpha"))
        alpha = alphas.get(f"{module}.alpha", own)
        if alpha is not None:
            found[key] = weights[key] * (float(alpha) / weights[key].shape[1])
    return found


def for_student(weights: Weights, plan: Plan, networks: Mapping[str, nn.Module]) -> tuple[Weights, dict[str, str]]:
    """A teacher's LoRA under the names of its student, and of the weights that have no place in it the reason.

    networks: the student's, by their names in its pipeline. Layers that are others in the student's order (BK-SDM's) get the
    weights of those that they come from.
    """
    gone = {edit.site: edit.operation for edit in plan.edits if edit.operation not in KEEPING}
    found: Weights = {}
    reasons: dict[str, str] = {}  # by module: of a pair both go
    for key, weight in weights.items():
        module = module_of(key)
        part, _, inside = module.partition(".")
        name = key
        if part in DENOISERS:
            site = next((each for each in gone if inside == each or inside.startswith(f"{each}.")), None)
            if site is not None and not (gone[site] == "shortcut" and inside == f"{site}.conv_shortcut"):
                reasons[module] = f"{site} is gone ({gone[site]})"
                continue
            name = f"{part}.{student_path(inside, plan.sources)}{key[len(module) :]}"
        unfit = misfits(networks, {name: weight})
        if unfit:
            reasons.setdefault(module, unfit[0].partition(" (")[2].removesuffix(")"))
        found[name] = weight
    unfitting = {key: reasons[module_of(key)] for key in weights if module_of(key) in reasons}
    kept = {name: weight for name, weight in found.items() if all(weight is not weights[key] for key in unfitting)}
    return kept, unfitting


def student_path(path: str, sources: Mapping[str, str]) -> str:
    """Where a module of the teacher is in a student whose paths come from other ones of the teacher (Plan.sources)."""
    matching = [(theirs, ours) for ours, theirs in sources.items() if path == theirs or path.startswith(f"{theirs}.")]
    theirs, ours = max(matching, key=lambda pair: len(pair[0]), default=("", ""))
    return ours + path[len(theirs) :]
