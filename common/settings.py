"""What settings may be: types with ranges, and the check of a configuration's values against them.

A class or function that takes settings states them in its signature: `k: Count | None`, `formula: Literal["sum", "product"]`.
That signature is the schema. `checked_call` holds the values of a call against it (pydantic does), `describe` says it in words.
What depends on several settings together a class checks itself, and its own fields by `check_fields`.
"""

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Collection, Mapping
from functools import cache, partial
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Len, Lt, MinLen, Predicate

from common.errors import InputError

Count = Annotated[int, Ge(0)]
AtLeastOne = Annotated[int, Ge(1)]
Seed = Annotated[int, Ge(0), Lt(2**63)]
ImageSize = Annotated[int, Ge(8)]
NonNegative = Annotated[float, Ge(0)]
Positive = Annotated[float, Gt(0)]
Share = Annotated[float, Gt(0), Lt(1)]
Probability = Annotated[float, Ge(0), Le(1)]
GuidanceScale = Annotated[float, Ge(0), Le(1000)]
Decay = Annotated[float, Ge(0), Lt(1)]


def is_target(value: Mapping[str, Any]) -> bool:
    """Whether Hydra makes something of a group of settings."""
    return "_target_" in value


Target = Annotated[dict[str, Any], Predicate(is_target)]

HYDRA_KEYS = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")
OTHER = "another value"  # of a kind that no setting has, such as a tensor
DIGITS = 12  # of a float that count: 0.1 + 0.2 and 0.3 are one setting


def normalize(value: Any, where: str = "") -> Any:
    """Settings as they are compared and recorded: "None" is None, and floats have 12 significant digits.

    where: the place of `value` in the configuration. InputError for a float that is not finite.
    """
    if isinstance(value, Mapping):
        return {name: normalize(each, f"{where}.{name}".removeprefix(".")) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [normalize(each, f"{where}[{number}]") for number, each in enumerate(value)]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"{where}={value}: a finite number is needed.")
        return float(f"{value:.{DIGITS}g}")
    return None if value == "None" else value


def checked_call(values: Mapping[str, Any], target: Any, where: str, given: Collection[str] = ()) -> dict[str, Any]:
    """The settings `values` of a call of `target` (a dataclass, class or function), converted as its signature wants them.

    where: their place in the configuration, such as "method". given: arguments that the caller adds itself, which no setting
    may name. With `_partial_: true` among the values some may be missing. What Hydra makes of a `_target_` of its own is left
    as it is. InputError in one line for the first that is unknown, missing, of a wrong kind or out of range.
    """
    from pydantic import ValidationError

    for name in set(values).intersection(given):
        raise InputError(f"{joined(where, name)}: this argument is not a setting.")
    made = [name for name, value in values.items() if isinstance(value, Mapping) and is_target(value)]
    named = {name: value for name, value in values.items() if name not in (*HYDRA_KEYS, *made)}
    try:
        found = adapter(target, frozenset((*given, *made)), bool(values.get("_partial_"))).validate_python(named)
    except ValidationError as error:
        raise InputError(error_message(error.errors(include_url=False)[0], named, target, where)) from None
    return {name: found.get(name, value) for name, value in values.items()}


def check_fields(instance: Any, where: str) -> None:
    """InputError in one line where a field of a dataclass is not what its annotation says; `where` names it."""
    checked_call({field.name: getattr(instance, field.name) for field in dataclasses.fields(instance)}, type(instance), where)


def error_message(error: Mapping[str, Any], values: Mapping[str, Any], target: Any, where: str) -> str:
    """One line for an error of pydantic's: the setting, its value, and what would be right."""
    name, *deeper = error["loc"]
    place, known = joined(where, str(name)), arguments_of(target)
    if error["type"] == "extra_forbidden" and not deeper:
        return f"{place}: there is no such setting; there are {', '.join(known)}."
    if error["type"] == "missing" and not deeper:
        return f"{place} is missing: {describe(known[name][0])} is needed."
    annotation = without_null(known[name][0])
    if deeper and dataclasses.is_dataclass(annotation) and isinstance(values[name], Mapping):
        return error_message({**error, "loc": deeper}, values[name], annotation, place)
    if get_origin(annotation) is Literal:
        return f"{place}={values[name]!r} is none of {', '.join(map(str, get_args(annotation)))}."
    shown = "null" if values[name] is None else repr(values[name])
    wanted = describe(known[name][0])
    return f"{place}={shown}: {wanted}{',' if ', or ' in wanted else ''} is needed."


def joined(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


@cache
def arguments_of(target: Any) -> dict[str, tuple[Any, bool]]:
    """Annotation of each argument of a call of `target`, and whether it must be given."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found: dict[str, tuple[Any, bool]] = {}
    for each in calls(target):
        try:
            hints = typing.get_type_hints(each, include_extras=True)
        except (NameError, TypeError):  # annotations that cannot be evaluated
            hints = {}
        for parameter in inspect.signature(each).parameters.values():
            if parameter.kind in named and parameter.name != "self":
                needed = parameter.default is parameter.empty
                found.setdefault(parameter.name, (hints.get(parameter.name, Any), needed))
    return found


def calls(target: Any) -> list[Any]:
    """What takes the arguments of a call of `target`: of a class that hands any further ones on, its bases' too."""
    if dataclasses.is_dataclass(target) or not inspect.isclass(target):
        return [target]
    found = []
    for kind in target.__mro__:
        if "__init__" in vars(kind):
            found.append(kind.__init__)
            if not takes_any(kind.__init__):
                break
    return found


def takes_any(call: Any) -> bool:
    return any(each.kind is each.VAR_KEYWORD for each in inspect.signature(call).parameters.values())


@cache
def adapter(target: Any, given: frozenset[str], incomplete: bool) -> Any:
    """Pydantic's validator of the keyword arguments of `target`, as a dictionary."""
    from pydantic import TypeAdapter

    return TypeAdapter(schema(target, given, incomplete))


def schema(target: Any, given: Collection[str] = (), incomplete: bool = False) -> Any:
    """The keyword arguments of `target` as a typed dictionary; others are refused unless it takes any (**options)."""
    from typing import NotRequired, Required

    from pydantic import ConfigDict
    from typing_extensions import TypedDict

    fields = {
        name: (Required if needed and not incomplete else NotRequired)[strict_annotation(annotation)]
        for name, (annotation, needed) in arguments_of(target).items()
        if name not in given
    }
    typed = TypedDict(getattr(target, "__name__", "Settings"), fields)
    typed.__pydantic_config__ = ConfigDict(extra="allow" if takes_any(calls(target)[-1]) else "forbid")
    return typed


def strict_annotation(annotation: Any) -> Any:
    """The annotation for pydantic, so that a value of another kind is refused instead of converted.

    Whole floats (1e3) are whole numbers, and whole numbers are text (a folder called 2024). Any sequence becomes a list.
    """
    from pydantic import BeforeValidator, Strict

    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return Annotated[(strict_annotation(arguments[0]), *arguments[1:])]
    if origin in (Union, types.UnionType):
        settable = [found for each in arguments if (found := strict_annotation(each)) is not Any or each is Any]  # no tensors
        return Union[tuple(settable or [Any])]  # noqa: UP007
    if origin is Literal or annotation in (None, type(None)):
        return annotation
    if dataclasses.is_dataclass(annotation):
        return schema(annotation)
    if is_kind(annotation, Mapping):
        return dict[str, strict_annotation((arguments or (str, Any))[1])]
    if is_kind(annotation, Collection) and annotation is not str:
        return list[strict_annotation((arguments or (Any,))[0])]
    scalars = {
        bool: Annotated[bool, Strict()],
        int: Annotated[int, BeforeValidator(partial(converted, float, int)), Strict()],
        float: Annotated[float, Strict()],
        str: Annotated[str, BeforeValidator(partial(converted, int, str)), Strict(), Len(1)],
    }
    return scalars.get(annotation, Any)


def converted(kind: type, wanted: type, value: Any) -> Any:
    """A value of `kind` as one of the `wanted` kind, where that loses nothing; any other as it is."""
    return wanted(value) if type(value) is kind and wanted(value) in (value, str(value)) else value


def is_kind(annotation: Any, kind: type) -> bool:
    """Whether an annotation such as dict[str, int] or Sequence[str] is of `kind`; a tensor, say, is of none."""
    bare = get_origin(annotation) or annotation
    return inspect.isclass(bare) and bare.__module__ in ("builtins", "collections.abc") and issubclass(bare, kind)


def without_null(annotation: Any) -> Any:
    """X of `X | None`."""
    inner = [each for each in get_args(annotation) if each is not type(None)]
    is_union = get_origin(annotation) in (Union, types.UnionType)
    return inner[0] if is_union and len(inner) == 1 else annotation


def describe(annotation: Any) -> str:
    """An annotation in words: "a whole number of at least 1, or null"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return " and ".join([describe(arguments[0]), *filter(None, map(describe_bound, arguments[1:]))]).replace(
            " and ", " ", 1
        )
    if origin in (Union, types.UnionType):
        return ", or ".join(words for each in arguments if (words := describe(each)) != OTHER)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else str(arguments[0])
    if is_kind(annotation, Mapping) or dataclasses.is_dataclass(annotation):
        return "a group of settings"
    if is_kind(annotation, Collection) and annotation is not str:
        return "a list" if not arguments else f"a list (each {describe(arguments[0])})"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return words.get(annotation, OTHER)


def describe_bound(bound: Any) -> str:
    """A bound of annotated_types in words; "" for anything else that stands beside a type."""
    if isinstance(bound, Predicate):
        return "with a _target_"
    if isinstance(bound, Lt) and bound.lt == 2**63:
        return "below 2^63"
    words = {
        Ge: ("of at least", "ge"),
        Gt: ("above", "gt"),
        Le: ("up to", "le"),
        Lt: ("below", "lt"),
        MinLen: ("of length", "min_length"),
    }
    phrase, name = words.get(type(bound), ("", ""))
    return f"{phrase} {getattr(bound, name)}" if phrase else ""


def is_finite_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
