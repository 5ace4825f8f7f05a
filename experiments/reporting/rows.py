"""Result rows of many jobs: reading them, and what they are called."""

import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.runtime.strict_json import from_json, read_json
from common.shown_text import spelt_out
from experiments.reporting.metric_table import find_metric
from experiments.shared.identity import by_value
from experiments.shared.row import BESIDE, REPLICATES, Figures, Row

SAMPLED_BY = ("images", "reference_images", "steps", "guidance_scale", "split", "seed", "seeds", "scheduler")  # of a protocol
KNOBS = ("variant", "k", "ratio", "parameters", "sparsity")  # what a sweep of a method is usually over
COUNTS = (  # whole numbers beside the metrics of a model
    "parameters",
    "nonzero_parameters",
    "macs",
    "macs_without_attention_products",
    "checkpoint_bytes_fp16",
    "reference_images",
    "images",
)
CHOICES = ("task", "scale", "teacher", "method", "distill", "experiment", "preset")  # groups whose option a row names


def page_place(row: Row) -> str:
    """Below what folder a row's page is: the task that was chosen, and the teacher's name where that is not the task's own."""
    chosen = row.get("choices", {})
    task, teacher = chosen.get("task") or row["settings"]["task"]["name"], chosen.get("teacher")
    return task if teacher is None or teacher.endswith(f"_{task}") else f"{task}/{teacher}"


TELLING = ("distill", "init", "seed", "distill.output_weight", "distill.feature_weight", "distill.accumulate", "preset")
METHODS = {  # as their papers call them; one from elsewhere is called as on the command line
    "bk_sdm": "BK-SDM",
    "block_influence": "block influence",
    "dense": "dense",
    "diff_pruning": "Diff-Pruning",
    "l1_diff": "L1-Diff",
    "laptop_diff": "LAPTOP-Diff",
    "ld_pruner": "LD-Pruner",
    "magnitude": "magnitude",
    "published": "published",
    "random_layers": "random layers",
}
ROWS_FILE = "rows.jsonl"
PARTS = ("settings", "models", "plan", "protocol")


def read_rows(folders: Iterable[Path]) -> list[Row]:
    """The result rows below the folders, each once; a broken one is named on standard error and left out.

    Rows are a job's result.json, and the lines of rows.jsonl, as published ones are kept. InputError when a folder does not
    exist, or when there is no row at all.
    """
    folders = list(folders)
    rows: dict[str, Row] = {}
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder; give one that holds jobs, such as outputs.")
        for path, text in texts_below(folder):
            try:
                row = whole(from_json(text))
                rows.setdefault(json.dumps(row, sort_keys=True), {**row, "path": path})
            except (ValueError, TypeError, RecursionError) as error:  # JSON's own error is a ValueError
                print(spelt_out(f"left out: {path} is no whole row: {error}"), file=sys.stderr)
    if not rows:
        raise InputError(f"No result.json or {ROWS_FILE} below {', '.join(map(str, folders))}: run a job first.")
    return list(rows.values())


def whole(row: Any) -> Row:
    """The row; ValueError saying what is wrong where it is none."""
    if not isinstance(row, dict):
        raise ValueError("it is no JSON object")
    missing = [name for name in PARTS if name not in row]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    shapes = {name: list if name == "plan" else dict for name in PARTS}
    wrong = [name for name, shape in shapes.items() if not isinstance(row[name], shape)]
    wrong += [f"models.{who}" for who in ("teacher", "pruned") if not wrong and not isinstance(row["models"].get(who), dict)]
    if wrong:
        raise ValueError(f"its {wrong[0]} is of another shape")
    return row


def read_row(path: Path, remedy: str) -> Row:
    """The row in a job's result.json; InputError naming it and the remedy when it is damaged."""
    row = read_json(path, remedy)
    try:
        return whole(row)
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); {remedy}.") from error


def texts_below(folder: Path) -> Iterator[tuple[str, str]]:
    """Where each row below the folder is, and its JSON."""
    for path in sorted(folder.rglob("result.json")):
        yield str(path), path.read_text(encoding="utf-8")
    for path in sorted(folder.rglob(ROWS_FILE)):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            yield f"{path}:{number}", line


def setting(row: Row) -> str:
    """The values of the method's own knobs, such as "0.5", "base" or "published 0.7", without those that tell nothing: null,
    and the method's own name.
    """
    method = row["settings"]["method"]
    given = {name: method[name] for name in KNOBS if method.get(name) not in (None, method_name(row))}
    return " ".join(f"{name}={value}" if name == "parameters" else str(value) for name, value in given.items())


def distance_name(row: Row) -> str:
    """The name of the row's Fréchet distance, such as "fd_effnet"."""
    return next(name for name in row["models"]["teacher"] if name.startswith(("fd_", "fad_")))


def metric_names(rows: Sequence[Row]) -> list[str]:
    """What teacher and students are judged by: every number that is neither a count nor stands beside another.

    Distances to the teacher at equal seeds are the first, then the unbiased one to real images.
    """
    found = {
        name: None
        for row in rows
        for name, value in row["models"]["teacher"].items()
        if isinstance(value, int | float) and name not in COUNTS and not name.endswith(BESIDE)
    }
    first = ("feature_mse", "latent_mse", "kd_")
    return sorted(
        found, key=lambda name: next((place for place, each in enumerate(first) if name.startswith(each)), len(first))
    )


def drawn_metrics(rows: Sequence[Row]) -> list[str]:
    """Those of metric_names that have a picture of their own."""
    return [name for name in metric_names(rows) if find_metric(name).drawn]


def drawn_by_teacher(row: Row, setting: str = "task.data") -> bool:
    """Whether the data of a setting were samples of the teacher."""
    return value_of(row, f"{setting}._target_") == "TeacherSamples"


def real_images(row: Row) -> str:
    """What samples are compared with, where it is not the teacher's samples of equal seeds."""
    return "samples of the teacher from other seeds" if drawn_by_teacher(row) else "real images"


def method_name(row: Row) -> str:
    return row.get("choices", {}).get("method", "")


def method_title(row: Row) -> str:
    """What a person calls the row's method."""
    return METHODS.get(method_name(row), method_name(row))


def value_of(row: Row, name: str) -> Any:
    """A choice by the name of its group, or a setting by its dotted path; None where the row does not have it.

    Of a `_target_` the class's or function's own name: where it lies may change.
    """
    if name in CHOICES:
        return row.get("choices", {}).get(name)
    value: Any = row["settings"]
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value.rpartition(".")[2] if name.endswith("_target_") and isinstance(value, str) else value


def labels(rows: Sequence[Row]) -> list[str]:
    """What a legend calls each job, no two alike: its method with what differs, where that is not enough its recipe, init or
    seed, then any setting that differs, and at last a number.
    """
    found = [f"{method_title(row)} {words}".strip() for row, words in zip(rows, changed_settings(rows), strict=True)]
    for name in TELLING:
        tell_apart(found, rows, name)
    for label in {each for each in found if found.count(each) > 1}:
        members = [place for place, each in enumerate(found) if each == label]
        own, alike = [label] * len(members), [rows[place] for place in members]
        for name in differing(alike):
            if len(set(own)) < len(own):
                tell_apart(own, alike, name)
        for place, each in zip(members, own, strict=True):
            found[place] = each
    return [
        f"{label} #{found[: place + 1].count(label)}" if found.count(label) > 1 else label for place, label in enumerate(found)
    ]


def tell_apart(found: list[str], rows: Sequence[Row], name: str) -> None:
    """Adds a setting to those of the labels that several rows share in which it differs."""
    values = [value_of(row, name) for row in rows]
    differ = {label for label in found if len({str(v) for v, other in zip(values, found, strict=True) if other == label}) > 1}
    for place, (label, value) in enumerate(zip(found.copy(), values, strict=True)):
        if label in differ:
            found[place] = f"{label} {in_words(name.rpartition('.')[2], value)}"


def differing(rows: Sequence[Row]) -> list[str]:
    """Dotted names of the settings that differ among the rows."""

    def leaves(value: Any, name: str = "") -> Iterator[str]:
        if isinstance(value, dict):
            for key, item in value.items():
                yield from leaves(item, f"{name}.{key}" if name else key)
        else:
            yield name

    names = dict.fromkeys(name for row in rows for name in leaves(row["settings"]))
    values = {name: [value_of(row, name) for row in rows] for name in names}
    plain = {name: found for name, found in values.items() if not any(isinstance(value, dict) for value in found)}
    return [name for name, found in plain.items() if len(set(map(str, found))) > 1]


def groups_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows that can be compared, by group_name, in the order of setting and method."""
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (natural(setting(row)), method_name(row))):
        groups.setdefault(comparable(row), []).append(row)
    names = [group_name(members[0]) for members in groups.values()]
    numbered = [
        f"{name} ({names[:place].count(name) + 1})" if names.count(name) > 1 else name for place, name in enumerate(names)
    ]
    return dict(zip(numbered, groups.values(), strict=True))


def natural(text: str) -> list[tuple[float, str]]:
    """A key that sorts the words of a text, numbers among them by value and before others."""
    return [(float(word), "") if re.fullmatch(r"\d+(\.\d+)?", word) else (math.inf, word) for word in text.split()]


def comparable(row: Row) -> str:
    """What rows must have in common for their figures to be comparable: teacher, data, features, and how was sampled."""
    return json.dumps(by_value(compared_by(row)), sort_keys=True)


def compared_by(row: Row) -> dict[str, Any]:
    settings = row["settings"]
    task = {name: settings["task"].get(name) for name in ("name", "data", "features")}
    protocol = {name: row["protocol"].get(name) for name in SAMPLED_BY}
    return {"task": task, "teacher": settings["teacher"], "protocol": protocol}


def but_for_seed(row: Row) -> str:
    """What rows have in common that differ in nothing but seeds."""
    return json.dumps(by_value(without_seeds({**compared_by(row), "settings": row["settings"]})), sort_keys=True)


def without_seeds(settings: Any) -> Any:
    if not isinstance(settings, dict):
        return settings
    return {name: without_seeds(value) for name, value in settings.items() if name != "seed"}


def recipe(row: Row) -> str:
    """How the student was trained, in two words: the recipe and its optimiser steps."""
    return f"{row.get('choices', {}).get('distill', '')} {row['settings']['distill']['steps']}"


def left(row: Row, figures: Figures) -> float:
    """The share of the teacher's parameters that a model has and that are not zero."""
    return nonzero_parameters(figures) / row["models"]["teacher"]["parameters"]


def nonzero_parameters(figures: Figures) -> int:
    """A model's parameters that are not zero; all of them where zeros were not counted."""
    return figures.get("nonzero_parameters", figures["parameters"])


def student(row: Row) -> str:
    """What the job ended with: "distilled", or "pruned" where nothing was trained."""
    return "distilled" if "distilled" in row["models"] else "pruned"


def group_name(row: Row) -> str:
    """What rows of one table have in common: task, teacher and protocol."""
    settings, protocol = row["settings"], row["protocol"]
    what = f"{settings['task']['name']}, teacher {settings['teacher']['path']}"
    guidance = f", guidance {protocol['guidance_scale']:g}" if protocol.get("guidance_scale") else ""
    return f"{what}, {protocol['images']} images of {protocol['steps']} steps{guidance}"


def changed_settings(rows: Sequence[Row]) -> list[str]:
    """For each row its own knobs, and the method's settings that differ among the rows of the same method and variant."""
    found = []
    for row in rows:
        method = row["settings"]["method"]
        all_others = (other["settings"]["method"] for other in rows)
        others = [o for o in all_others if o.keys() == method.keys() and o.get("variant") == method.get("variant")]
        names = [name for name in method if name not in KNOBS and any(other[name] != method[name] for other in others)]
        found.append(" ".join(filter(None, [setting(row), *(in_words(name, method[name]) for name in names)])))
    return found


def in_words(name: str, value: Any) -> str:
    """A setting as short as it can be told apart: words alone, lists joined, numbers without trailing zeros."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "+".join(map(str, value))
    return f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"


def flat(figures: Figures, prefix: str = "") -> dict[str, Any]:
    """Nested figures side by side: {"latency": {"ratio": 1}} becomes {"latency_ratio": 1}. Replicates are left out."""
    found: dict[str, Any] = {}
    for name, value in figures.items():
        if not name.endswith(REPLICATES):
            found |= flat(value, f"{prefix}{name}_") if isinstance(value, dict) else {prefix + name: value}
    return found
