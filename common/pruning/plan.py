"""What a pruning method decides: edits at sites of a denoiser, where they came from, and how they are carried out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.errors import InputError, first_line
from common.pruning.masks import MASK, masked_copy, masked_weights, plan_masks
from common.runtime import strict_json

PLAN_FILE, PLAN_TENSORS = "plan.json", "plan.safetensors"
OPERATIONS = ("identity", "skip", "linear", "zero", "shortcut", "conv1x1", "avg_pool", "upsample", "resize", MASK, "drop")
WHOLE = ("identity", "skip")  # of those that leave nothing of a block but what passes it


@dataclass(frozen=True)
class Edit:
    """One change at one site (a module path of the unpruned denoiser); operations: common/pruning/pruned_denoiser.py.

    `sizes` are the operation's own numbers (in, out, channels, stride, bias, scale); `score` is the site's score, low = cheap.
    """

    site: str
    operation: str
    sizes: dict[str, Any] = field(default_factory=dict)
    score: float | None = None

    def to_dict(self) -> dict[str, Any]:
        scored = {} if self.score is None else {"score": self.score}
        return {"site": self.site, "operation": self.operation, **self.sizes, **scored}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Edit":
        values = dict(values)
        return cls(values.pop("site"), values.pop("operation"), score=values.pop("score", None), sizes=values)


@dataclass(frozen=True)
class Plan:
    """The ordered edits of a method, with their origin.

    tensors: the first weights of new 1x1 convolutions by their names in the student; for "resize" the indices, ascending, of
    the kept rows and columns of the teacher's weight, "<site>.out" and "<site>.in"; for "mask" what is kept, "<site>.mask".
    All of the student's weights where none is the teacher's (a student that others have trained).

    scores: one number per candidate site, chosen or not; settings: the method's configuration as plain values.
    config_changes: where diffusers' own configuration can express the student (BK-SDM), the entries that differ from the
    teacher's; the edits then only name what is gone ("drop"). sources: prefixes of such a student's paths and the teacher's
    prefixes their weights come from, where the two differ; the longest prefix counts.
    """

    method: str
    edits: tuple[Edit, ...]
    teacher: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict, compare=False)
    config_changes: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        from common.pruning.plan_table import plan_table

        return plan_table(self)

    def then(self, later: "Plan") -> "Plan":
        """One plan for what this one applies to, which gives what `later` makes of this one's student.

        Of channels that both remove indices the kept ones are composed. InputError for masks, and for plans that are said in
        diffusers' own configuration: their students count their layers anew.
        """
        for plan in (self, later):
            if has_masks(plan.edits) or plan.config_changes:
                raise InputError(f"A plan of {plan.method or 'masks'} cannot be put together with another.")
        edits, tensors = list(self.edits), dict(self.tensors)
        for edit in later.edits:
            own = {name: tensor for name, tensor in later.tensors.items() if name.rpartition(".")[0] == edit.site}
            at = next((at for at, each in enumerate(edits) if each.site == edit.site), None)
            if at is not None and edit.operation == "resize":
                edits[at], own = resized_again(edits[at], edit, tensors, own)
            else:
                if at is not None:
                    del edits[at]
                    tensors = {name: kept for name, kept in tensors.items() if name.rpartition(".")[0] != edit.site}
                around = [at for at, each in enumerate(edits) if edit.site.startswith(f"{each.site}.")]
                edits.insert(min(around, default=len(edits)), edit)  # what is left inside a site changes before the site does
            tensors |= own
        return Plan(
            method=self.method if self.method == later.method else f"{self.method}, {later.method}",
            edits=tuple(edits),
            teacher=self.teacher,
            scores=self.scores | later.scores,
            settings=later.settings | {"after": self.settings},
            tensors=tensors,
        )

    def to_dict(self) -> dict[str, Any]:
        values = {
            "method": self.method,
            "teacher": self.teacher,
            "edits": [edit.to_dict() for edit in self.edits],
            "scores": self.scores,
            "settings": self.settings,
        }
        if self.config_changes:
            values |= {"config_changes": self.config_changes, "sources": self.sources}
        return values

    def to_json(self) -> str:
        """The plan without its tensors."""
        return strict_json.to_json(self.to_dict(), indent=1)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Plan":
        edits = tuple(Edit.from_dict(edit) for edit in values["edits"])
        names = ("teacher", "scores", "settings", "config_changes", "sources")
        known = {name: values[name] for name in names if name in values}
        return cls(method=values.get("method", ""), edits=edits, **known)

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """The inverse of to_json; InputError with one line when the text is no plan."""
        try:
            return cls.from_dict(strict_json.from_json(text))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"This is not a plan in JSON: {error!r}.") from error

    def save(self, folder: Path) -> None:
        """Writes plan.json, and plan.safetensors where there are tensors, each whole or not at all."""
        from safetensors.torch import save

        from common.runtime.files import write_atomically

        if self.tensors:
            write_atomically(folder / PLAN_TENSORS, save(self.tensors))
        write_atomically(folder / PLAN_FILE, self.to_json().encode())

    @classmethod
    def load(cls, folder: Path) -> "Plan":
        """The inverse of save; InputError naming a damaged file."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        remedy = f"delete {folder} to plan anew"
        try:
            plan = cls.from_json((folder / PLAN_FILE).read_text(encoding="utf-8"))
        except ValueError as error:  # InputError, and what is not text
            raise InputError(f"{folder / PLAN_FILE} is damaged ({first_line(error)}); {remedy}.") from error
        try:
            tensors = load_file(folder / PLAN_TENSORS) if (folder / PLAN_TENSORS).is_file() else {}
        except SafetensorError as error:
            raise InputError(f"{folder / PLAN_TENSORS} is damaged ({error}); {remedy}.") from error
        return replace(plan, tensors=tensors)


def apply_plan(unet: nn.Module, plan: Plan) -> nn.Module:
    """A new student with the weights that remain; `unet` is not touched.

    A student that carries a plan can be pruned further: it then carries the plan of both (Plan.then).

    It is of the pruned subclass of `unet`'s class (common/pruning/pruned_denoiser.py), or of that class itself where the plan
    can be said in diffusers' own configuration, where its edits are masks (common/pruning/masks.py; of autoencoders too) or it
    has none. Raises InputError naming the site when an edit names a site that the network does not have, or when the plan lacks
    the weights of a new module.
    """
    from common.pruning import pruned_denoiser

    check_edits(unet, plan)
    settings = own_settings(unet)
    if settings.get("plan") and plan.config_changes:
        raise InputError(f"{plan.method} is for an unpruned U-Net; this one carries a plan.")
    if has_masks(plan.edits) or not (plan.edits or plan.tensors):
        return masked_copy(unet, plan_masks(plan.edits, plan.tensors))
    base = next(kind for kind in type(unet).__mro__ if not kind.__name__.startswith("Pruned"))
    if not hasattr(base, "from_config"):
        raise InputError(f"A plan applies to a denoiser of diffusers, not to a {base.__name__}.")
    weight = next(unet.parameters())
    if plan.config_changes or not plan.edits:
        student_class, settings = base, settings | plan.config_changes
    else:
        carried = settings.get("plan")
        whole = Plan.from_dict(carried).then(replace(plan, tensors={})) if carried else plan
        student_class, settings = pruned_denoiser.pruned_class(base), settings | {"plan": whole.to_dict()}
    try:
        with torch.device("meta"):
            student = student_class.from_config(settings)
    except ValueError as error:  # of an operation that is not for this kind of module
        raise InputError(f"The plan cannot be applied: {first_line(error)}") from error
    weights = unet.state_dict()
    for edit in plan.edits:
        if edit.operation == "resize":
            weights |= kept_weights(unet.get_submodule(edit.site), edit.site, plan.tensors)
    weights |= {name: value.to(weight) for name, value in plan.tensors.items()}
    wanted = student.state_dict()
    if plan.sources:
        weights = {name: weights[source] for name in wanted if (source := source_name(name, plan.sources)) in weights}
    missing = sorted(name for name in wanted if name not in weights or weights[name].shape != wanted[name].shape)
    if missing:
        raise InputError(f"The plan brings no weights for {missing[0]} ({len(missing)} in all); load it with Plan.load.")
    student.load_state_dict({name: weights[name].clone() for name in wanted}, assign=True)
    copy_constants(student, unet)
    return student.train(unet.training)


def copy_constants(student: nn.Module, original: nn.Module) -> None:
    """Gives the student, which was built without data, the tensors that are no weights: the places of a transformer's patches.

    They are buffers that are not saved, or plain attributes.
    """
    originals = dict(original.named_modules())
    for path, module in student.named_modules():
        saved = set(module.state_dict(keep_vars=True)) | set(module._parameters)
        for name, value in [*module._buffers.items(), *vars(module).items()]:
            if isinstance(value, torch.Tensor) and name not in saved:
                constant = getattr(originals[path], name).clone()
                module._buffers.update({name: constant}) if name in module._buffers else setattr(module, name, constant)


def own_settings(unet: Any) -> dict[str, Any]:
    """The entries of its configuration without diffusers' notes on it, above all `_use_default_values`: what from_config finds
    in that list it drops, also where a plan changes it."""
    return {name: value for name, value in unet.config.items() if not name.startswith("_")}


def source_name(name: str, sources: dict[str, str]) -> str:
    """The teacher's name of a student's parameter: its longest prefix among `sources` is replaced."""
    prefixes = [prefix for prefix in sources if name.startswith(f"{prefix}.")]
    if not prefixes:
        return name
    longest = max(prefixes, key=len)
    return sources[longest] + name[len(longest) :]


def check_edits(network: nn.Module, plan: Plan) -> None:
    """InputError naming the first site that the network does not have, or the first operation that there is not."""
    known = {name for name, _ in network.named_modules()}
    for edit in plan.edits:
        if edit.site not in known:
            raise InputError(f"The plan edits {edit.site!r}, which this {type(network).__name__} does not have.")
        if edit.operation not in OPERATIONS:
            raise InputError(f"The plan edits {edit.site!r} by {edit.operation!r}; there are {', '.join(OPERATIONS)}.")


def has_masks(edits: Sequence[Edit]) -> bool:
    return any(edit.operation == MASK for edit in edits)


def kept_weights(module: nn.Module, site: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of `module` at the kept indices, by their names in the whole network."""
    weights = {}
    for name, parameter in module.named_parameters(recurse=False):
        weight: torch.Tensor = parameter
        for dimension, side in enumerate(("out", "in")[: weight.dim()]):
            if f"{site}.{side}" in tensors:
                weight = weight.detach().index_select(dimension, tensors[f"{site}.{side}"].to(weight.device))
        weights[f"{site}.{name}"] = weight
    return weights


def resized_again(
    earlier: Edit, later: Edit, known: dict[str, torch.Tensor], tensors: dict[str, torch.Tensor]
) -> tuple[Edit, dict[str, torch.Tensor]]:
    """The edit of a site that was resized, or replaced by a 1x1 convolution, and then resized; and the tensors of its site.

    known: tensors of the earlier plan; tensors: the later one's, of the site.
    """
    site = earlier.site
    another = f"{site} is narrowed by both plans, the later of which is not of the earlier one's student."
    if earlier.operation == "resize":
        try:
            kept = {name: known[name][rows.to(known[name].device)] if name in known else rows for name, rows in tensors.items()}
        except IndexError as error:
            raise InputError(another) from error
        return replace(later, sizes=earlier.sizes | later.sizes), kept
    if earlier.operation != "conv1x1" or not {"in", "out"} <= later.sizes.keys():
        raise InputError(another)
    sizes = {"in": later.sizes["in"], "out": later.sizes["out"], "bias": earlier.sizes["bias"]}
    first = {name: known[name] for name in (f"{site}.weight", f"{site}.bias") if name in known}
    for dimension, side in enumerate(("out", "in")):
        for name, weight in first.items():
            if f"{site}.{side}" in tensors and dimension < weight.dim():
                first[name] = weight.index_select(dimension, tensors[f"{site}.{side}"].to(weight.device))
    return replace(later, operation="conv1x1", sizes=sizes), first


def load_replacement(module: nn.Module, edit: Edit, tensors: dict[str, torch.Tensor]) -> nn.Module:
    """The module that stands at the edit's site afterwards, with its first weights from `tensors`."""
    from common.pruning.pruned_denoiser import build_replacement

    replacement = build_replacement(module, edit.to_dict())
    first = kept_weights(module, edit.site, tensors) if edit.operation == "resize" else tensors
    for name, parameter in replacement.named_parameters(recurse=False):
        weight = first.get(f"{edit.site}.{name}")
        if weight is not None:
            if weight.shape != parameter.shape:
                raise InputError(f"The plan brings no weights for {edit.site}.{name}; load it with Plan.load.")
            parameter.data.copy_(weight)
    return replacement


@contextmanager
def edited(unet: nn.Module, edits: list[Edit], tensors: dict[str, torch.Tensor]) -> Iterator[nn.Module]:
    """`unet` with the edits in place inside the context; afterwards the very same modules, or weights, are back."""
    from common.pruning.pruned_denoiser import set_module

    if has_masks(edits):
        with masked_weights(unet, plan_masks(edits, tensors)):
            yield unet
        return
    originals: list[tuple[str, nn.Module]] = []
    try:
        for edit in edits:
            if not any(edit.site.startswith(f"{site}.") for site, _ in originals):
                originals.append((edit.site, unet.get_submodule(edit.site)))
                set_module(unet, edit.site, load_replacement(originals[-1][1], edit, tensors))
        yield unet
    finally:
        for site, module in reversed(originals):
            set_module(unet, site, module)
