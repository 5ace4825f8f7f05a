"""An IP-Adapter (Ye et al. 2023, arXiv 2308.06721) of a teacher, under the numbers of its student's attentions.

Its files number the attentions of a U-Net: `<n>.to_k_ip.weight` of the cross-attentions 1, 3, 5, and in those of FaceID
`<n>.to_q_lora.down.weight` of all 0, 1, 2. Where a student has fewer, diffusers would take the first ones.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.errors import InputError, first_line
from common.runtime.regular_files import why_no_file

PARTS = ("image_proj", "ip_adapter")
Weights = dict[str, torch.Tensor]


def read_ip_adapter(path: Path) -> dict[str, Weights]:
    """The weights of both parts of a file, "image_proj" and "ip_adapter"; InputError where it holds no IP-Adapter."""
    from safetensors.torch import load_file

    reason = why_no_file(path)
    if reason is not None:
        raise InputError(f"The IP-Adapter {path} cannot be read: it is {reason}.")
    try:
        found: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # safetensors, pickle and torch each raise their own kind
        raise InputError(f"The IP-Adapter {path} cannot be read: {first_line(error)}.") from error
    if path.suffix == ".safetensors":
        split = [(*name.partition("."), weight) for name, weight in found.items()]
        found = {part: {name: weight for own, _, name, weight in split if own == part} for part in PARTS}
    if not isinstance(found, dict) or not all(found.get(part) for part in PARTS):
        raise InputError(f"{path} holds no IP-Adapter: weights of {' and '.join(PARTS)} are needed.")
    return {part: dict(found[part]) for part in PARTS}


def numbered(attentions: Mapping[str, nn.Module], lora: bool) -> dict[int, str]:
    """The attentions of a U-Net by the number that a file gives them: all of them for its LoRA, cross-attentions otherwise."""
    if lora:
        return dict(enumerate(attentions))
    return {2 * place + 1: name for place, name in enumerate(name for name in attentions if not name.endswith("attn1"))}


def attentions_of(unet: nn.Module) -> dict[str, nn.Module]:
    """The attentions of a U-Net by their paths, in diffusers' order of `attn_processors`."""
    processors: Any = unet.attn_processors
    return {name.removesuffix(".processor"): unet.get_submodule(name.removesuffix(".processor")) for name in processors}


def for_student(
    weights: Weights, original: nn.Module, student: nn.Module, sources: Mapping[str, str]
) -> tuple[Weights, dict[str, str]]:
    """The part "ip_adapter" under the student's numbers; of each attention of `original` without a place in it the reason.

    original: the U-Net that the adapter was made for, on any device. sources: as in Plan, the student's prefixes and what they
    come from. InputError where the file is of another U-Net, where an attention of the student has no weights in it, and where
    the student's attentions have other widths, for which diffusers has no IP-Adapter.
    """
    theirs, ours = attentions_of(original), attentions_of(student)
    origin = {name: original_path(name, sources) for name in ours}
    found: Weights = {}
    for lora in (False, True):
        of_teacher, of_student = numbered(theirs, lora), numbered(ours, lora)
        group = {key: weight for key, weight in weights.items() if ("_lora." in key) is lora}
        if group and {key.partition(".")[0] for key in group} != {str(number) for number in of_teacher}:
            raise InputError(
                f"The IP-Adapter is of another model: it has not one set of weights for each of {len(of_teacher)}."
            )
        number_of = {name: number for number, name in of_teacher.items()}
        for number, name in of_student.items():
            for key, weight in group.items():
                before, _, rest = key.partition(".")
                if before == str(number_of.get(origin[name])):
                    found[f"{number}.{rest}"] = weight
    for number, name in numbered(ours, False).items():
        check_width(found.get(f"{number}.to_k_ip.weight"), ours[name], name)
    return found, {name: "is gone" for name in theirs if name not in origin.values()}


def check_width(weight: torch.Tensor | None, attention: Any, name: str) -> None:
    """InputError where the keys of an adapter are no keys for this attention."""
    wanted = tuple(attention.to_k.weight.shape)
    if weight is None or tuple(weight.shape) != wanted:
        found = "none" if weight is None else f"of {tuple(weight.shape)}"
        raise InputError(f"The IP-Adapter does not fit the student: {name} takes keys of {wanted}, those in it are {found}.")


def original_path(path: str, sources: Mapping[str, str]) -> str:
    """Where a module of a student comes from (Plan.sources)."""
    ours = max((each for each in sources if path == each or path.startswith(f"{each}.")), key=len, default="")
    return sources.get(ours, "") + path[len(ours) :]


def write_ip_adapter(parts: Mapping[str, Weights], path: Path) -> None:
    """One .safetensors as diffusers' load_ip_adapter reads it, whole or not at all."""
    from safetensors.torch import save

    from common.runtime.files import write_atomically

    flat = {f"{part}.{name}": weight.contiguous() for part, weights in parts.items() for name, weight in weights.items()}
    write_atomically(path, save(flat, {"format": "pt"}))
