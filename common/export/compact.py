"""A pruned diffusion transformer as the stock class with fewer blocks, where nothing but whole blocks is gone.

The blocks that stay are counted anew, from 0: what goes by a block's number, a LoRA or a ControlNet of the teacher, has to go
through the map of numbers first, or would end in other blocks without a word. The student itself, with identities in place,
keeps the teacher's numbers.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from common.denoisers.denoiser import architecture_of
from common.errors import InputError
from common.pruning.plan import WHOLE, Plan, own_settings


def compact(student: nn.Module) -> tuple[nn.Module, dict[str, str]]:
    """The stock network with the student's outputs, and the teacher's path of each of its blocks by its own.

    InputError for a student of which more than whole blocks is gone or changed, or whose class cannot be counted anew.
    """
    settings, architecture = own_settings(student), architecture_of(student)
    edits = Plan.from_dict(settings.get("plan") or {"edits": []}).edits
    for edit in edits:
        if edit.operation not in WHOLE or not edit.site.rpartition(".")[2].isdigit():
            raise InputError(f"{edit.site} is {edit.operation}: where more than whole blocks change, no stock class is left.")
    lists = {site.rpartition(".")[0] for site in (*dict(architecture.blocks(student)), *(edit.site for edit in edits))}
    if not architecture.depths or not lists <= architecture.depths.keys():
        raise InputError(f"A {type(student).__name__} cannot be written with fewer blocks: its class does not count them so.")
    gone = {edit.site for edit in edits}
    numbers: dict[str, str] = {}
    config = {name: value for name, value in settings.items() if name not in ("plan", "auto_map")}
    for name, depth in architecture.depths.items():
        total = config[depth]
        kept = [site for site in (f"{name}.{index}" for index in range(total)) if site not in gone]
        if not kept and total:
            raise InputError(f"All {total} blocks of {name} are gone; a stock class has one at least.")
        numbers |= {f"{name}.{index}": site for index, site in enumerate(kept)}
        config |= architecture.counted_anew(config, [int(site.rpartition(".")[2]) for site in kept], depth)
    base = next(kind for kind in type(student).__mro__ if not kind.__name__.startswith("Pruned"))
    weights = {own_name(name, numbers): value for name, value in student.state_dict().items()}
    network: Any = base.from_config(config)  # type: ignore[attr-defined]
    weights = architecture.ended(weights, config, numbers)
    network.load_state_dict({name: value.clone() for name, value in weights.items()})
    weight = next(student.parameters())
    return nn.Module.to(network, weight.device, weight.dtype).train(student.training), numbers


def own_name(name: str, numbers: dict[str, str]) -> str:
    """A weight's name after its block is counted anew."""
    for new, old in numbers.items():
        if name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name


def renumbered(weights: Mapping[str, Tensor], numbers: Mapping[str, str]) -> tuple[dict[str, Tensor], list[str]]:
    """What a teacher's blocks bring along, such as a LoRA, under the numbers of a network that `compact` gave.

    And the names that belong to blocks that are gone: those weights have no place there, and are left out. Names may begin with
    that of the part (`transformer.`).
    """
    known = {old: new for new, old in numbers.items()}
    lists = {site.rpartition(".")[0] for site in known}
    found, left_out = {}, []
    for name, weight in weights.items():
        words = name.split(".")
        place = next((at for at, word in enumerate(words[:-1]) if word in lists and words[at + 1].isdigit()), None)
        if place is None:
            found[name] = weight
            continue
        own = known.get(".".join(words[place : place + 2]))
        if own is None:
            left_out.append(name)
        else:
            found[".".join([*words[:place], own, *words[place + 2 :]])] = weight
    return found, left_out


def old_name(name: str, numbers: dict[str, str]) -> str:
    """own_name backwards: a weight's name in the teacher."""
    return own_name(name, {old: new for new, old in numbers.items()})
