"""Finds a figure among result rows by what is asked for.

A selector is a mapping from settings ("method.ratio", "init") or choices ("method": the option of that group) to the values
that a row must have, and of these that tell which figures of the row are meant:

    model   teacher, pruned, or student: what the job ended with (the default)
    at      the share of the training after which they were measured, from 0 to 1, give or take TOLERANCE
    steps   sampling steps, where the row holds several numbers of them
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import InputError
from experiments.reporting.rows import but_for_seed, distance_name, flat, left, method_name, metric_names, student, value_of
from experiments.shared.row import BESIDE, REPLICATES, Row

WHICH = ("model", "at", "steps")  # of the figures; all else is compared with the row
TOLERANCE = 0.04  # of the training
Selector = Mapping[str, Any]


def equal(value: Any, wanted: Any) -> bool:
    """Whether two settings are the same, numbers by their value."""
    return math.isclose(value, wanted) if is_number(value) and is_number(wanted) else value == wanted


def matching(rows: Sequence[Row], selector: Selector) -> list[Row]:
    """The rows that a selector asks for."""
    wanted = {name: value for name, value in selector.items() if name not in WHICH}
    return [row for row in rows if all(equal(value_of(row, name), value) for name, value in wanted.items())]


def drawn_by_chance(row: Row) -> bool:
    """Whether a row's layers, or its weights, are drawn at random: another seed removes others."""
    method = row["settings"]["method"]
    return "RandomLayers" in str(method.get("_target_", "")) or "random" in (method.get("criterion"), method.get("variant"))


def varies_as(row: Row, model: str) -> str:
    """What tells by how much another seed would change a model: figures that have this in common vary alike.

    Before training it is the method, which draws much or nothing; after it training itself, unless layers are drawn by chance.
    """
    what = "drawn by chance" if drawn_by_chance(row) else "chosen"
    return f"{what} by {method_name(row)}" if model == "pruned" else what


def figures_of(row: Row, selector: Selector) -> dict[str, Any]:
    """The figures of a row that a selector means, side by side, with these besides:

    distance   the Fréchet distance, whatever its features
    left       the share of the teacher's parameters that is there and not zero
    time       of a forward pass, the teacher's being 1
    upward     the share of the edits that lie in up_blocks, the half of a U-Net near its output
    after      the share of the training after which they were measured
    model      whose they are: teacher, pruned or distilled
    varies_as  varies_as
    """
    who = {"student": student(row)}.get(selector.get("model", "student"), selector.get("model"))
    share, models = selector.get("at"), row["models"]
    found = dict(models[who])
    if "steps" in selector:
        measured = {str(row["protocol"]["steps"]): models, **row.get("by_steps", {})}
        found |= measured.get(str(selector["steps"]), {}).get(who, dict.fromkeys(metric_names([row])))
    if share is not None:
        total = row["settings"]["distill"]["steps"]
        moments = {0: models["pruned"], total: models[student(row)], **{point["step"]: point for point in row.get("curve", [])}}
        step = min(moments, key=lambda step: abs(step - share * total))
        near = abs(step - share * total) <= TOLERANCE * total
        found |= dict.fromkeys(metric_names([row])) | (moments[step] if near else {})  # what was not measured then is not known
        found["after"] = step / total if near and total else None
        who = "pruned" if step == 0 else who
    replicates = {name: value for name, value in found.items() if name.endswith(REPLICATES)}
    found = flat(found) | replicates
    for ending in ("", *BESIDE):
        found["distance" + ending] = found.get(distance_name(row) + ending)
    found["left"] = left(row, found)
    found["time"] = found.get("latency_ratio")
    found["model"], found["varies_as"] = who, varies_as(row, who)
    sites = [edit["site"] for edit in row["plan"]]
    found["upward"] = sum(site.startswith("up_blocks") for site in sites) / len(sites) if sites else math.nan
    return found


def find_all(rows: Sequence[Row], selector: Selector) -> list[dict[str, Any]]:
    """The figures that a selector means among the rows: several where rows differ in their seed alone, none without a match.

    A teacher is the same in every row of a table. InputError where students match that a longer selector would tell apart.
    """
    found = matching(rows, selector)
    if selector.get("model") == "teacher":
        found = found[:1]
    seeds = [row["settings"]["seed"] for row in found]
    if len(set(seeds)) < len(found) or len({but_for_seed(row) for row in found}) > 1:
        raise InputError(f"{dict(selector)} means {len(found)} rows; name more of their settings.")
    return [figures_of(row, selector) for row in found]


def find(rows: Sequence[Row], selector: Selector) -> dict[str, Any] | None:
    """As find_all, each number the mean over seeds; None where no row matches."""
    found = find_all(rows, selector)
    if len(found) < 2:
        return found[0] if found else None
    shared = {name: [each.get(name) for each in found] for name in found[0]}
    means = {name: math.fsum(values) / len(values) for name, values in shared.items() if all(map(is_number, values))}
    return {**found[0], **means}


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
