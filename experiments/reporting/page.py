"""One page about many jobs: plots, a table, pictures and sounds, in a single file that needs no network."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.runtime.files import write_text
from experiments.reporting.comparison import Measured, SeedNoise, difference, measured
from experiments.reporting.curves import COSTS, cost, draw_curves, plot_data
from experiments.reporting.lookup import figures_of
from experiments.reporting.metric_table import find_metric, metric_text
from experiments.reporting.paper_table import note, paper_table
from experiments.reporting.rows import (
    but_for_seed,
    drawn_metrics,
    groups_of,
    labels,
    left,
    metric_names,
    recipe,
    student,
)
from experiments.reporting.sample_sheet import SAMPLES, draw_sheet
from experiments.shared.row import Row

TEMPLATE = Path(__file__).with_name("page.html")
PICTURES = {"samples.png": SAMPLES, "plan.png": "plan", "scores.png": "scores", "sparsity.png": "sparsity"}
PICTURE_WIDTH = 900
SOUNDS = 6  # audio players of one job
FEW = 2  # metrics that the table shows at first
ONE_SIZE = 0.05  # of the teacher's parameters, within which students are of one size


def rendered(template: Path, autoescape: bool = False, **words: Any) -> str:
    """A template of Jinja's with its words in it; autoescape: of HTML."""
    from jinja2 import Environment, StrictUndefined

    options = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = Environment(autoescape=autoescape, undefined=StrictUndefined, **options)
    return environment.from_string(template.read_text(encoding="utf-8")).render(**words)


def embedded_picture(path: Path) -> str:
    """The picture as a data URL, not wider than the page shows it."""
    from PIL import Image

    with Image.open(path) as image:
        image = image.convert("RGB")
        if image.width > PICTURE_WIDTH:
            image = image.resize((PICTURE_WIDTH, round(image.height * PICTURE_WIDTH / image.width)), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def job_files(row: Row) -> dict[str, list[tuple[str, str]]]:
    """(title, data URL) of what lies beside a row: "pictures", and "sounds" in equal numbers of each model."""
    folder = Path(row["path"]).parent
    pictures = [(title, embedded_picture(folder / name)) for name, title in PICTURES.items() if (folder / name).is_file()]
    found = sorted(folder.glob("sounds/*.wav"), key=lambda path: path.stem.rpartition("_")[::-1])
    sounds = [(path.stem, f"data:audio/wav;base64,{base64.b64encode(path.read_bytes()).decode()}") for path in found[:SOUNDS]]
    return {"pictures": pictures, "sounds": sounds}


def metric_cell(row: Row, who: str, metric: str) -> tuple[float, str] | None:
    """A metric to sort by, and as text with its interval."""
    figures = row["models"][who]
    known = isinstance(figures.get(metric), int | float) and math.isfinite(figures[metric])
    return (figures[metric], metric_text(figures, metric)) if known else None


def table(rows: Sequence[Row]) -> dict[str, Any]:
    """Columns and cells of the sortable table, quality first; a cell that is None is empty. few: the columns shown at first."""
    metrics, names = metric_names(rows), ("parameters", "macs", "latency")
    columns = {find_metric(metric).title: lambda row, who, metric=metric: metric_cell(row, who, metric) for metric in metrics}
    columns |= {COSTS[name][0]: lambda row, who, name=name: cost(row, who, name) for name in names}
    cells = []
    for label, row in zip(labels(rows), rows, strict=True):
        figures = [read(row, student(row)) for read in columns.values()]
        cells.append([label, *figures, recipe(row), row.get("command", "")])
    judged = [metric for metric in metrics if find_metric(metric).drawn][:FEW] or metrics[:FEW]
    few = ["job", *(find_metric(metric).title for metric in judged), COSTS["parameters"][0], COSTS["latency"][0]]
    return {"columns": ["job", *columns, "distill", "command"], "cells": cells, "few": few}


def of_one_size(found: Sequence[tuple[float, str, Measured]]) -> list[tuple[float, list[tuple[float, str, Measured]]]]:
    """(share of the parameters left, name, figure) of students, in groups that differ by at most ONE_SIZE, with their mean."""
    groups: list[list[tuple[float, str, Measured]]] = []
    for each in sorted(found, key=lambda each: (-each[0], each[1])):
        if groups and groups[-1][0][0] - each[0] <= ONE_SIZE:
            groups[-1].append(each)
        else:
            groups.append([each])
    return [(math.fsum(each[0] for each in group) / len(group), group) for group in groups]


def outcome(rows: Sequence[Row]) -> list[str]:
    """What came out, in sentences: of the jobs of about one size, which is best by the first metric, and by how much.

    Rows that differ in their seed alone are one job.
    """
    metric, noise = metric_names(rows)[0], SeedNoise(rows)
    judge = find_metric(metric)
    title, form, sign = judge.title, judge.form, -1 if judge.higher else 1
    families: dict[str, list[Row]] = {}
    for row in rows:
        families.setdefault(but_for_seed(row), []).append(row)
    names = dict(zip(families, labels([family[0] for family in families.values()]), strict=True))
    found = []
    for key, family in families.items():
        figure = measured([figures_of(row, {}) for row in family], metric)
        if figure is not None:
            found.append((left(family[0], family[0]["models"][student(family[0])]), names[key], figure))
    told = []
    for size, students in of_one_size(found):
        ranked = sorted(students, key=lambda each: (sign * each[2].estimate.value, each[1]))
        (_, name, best), *others = ranked
        told.append(f"About {size:.0%} of the parameters left: {name} is best, {title} {form.format(best.estimate.value)}")
        if others:
            _, second, next_best = others[0]
            apart = difference(next_best, best, metric, noise)
            half = f" ±{form.format(apart.half).removesuffix('%')}" if apart.half else ""
            open_ = ", which seeds and samples alone can make" if apart.half and abs(apart.value) <= apart.half else ""
            told[-1] += f"; next {second}, {form.format(next_best.estimate.value)}"
            told[-1] += f" (worse by {form.format(abs(apart.value))}{half}{open_})"
        told[-1] += "."
    teacher = "" if judge.to_teacher else metric_text(rows[0]["models"]["teacher"], metric)
    return [*told, f"Of the teacher: {teacher}."] if teacher else told


def write_report(
    rows: Sequence[Row], folder: Path, title: str, notes: Sequence[str] = (), paper: Mapping[str, Any] | None = None
) -> Path:
    """Writes <folder>/index.html and PNG files of each group of rows.

    notes: lines at the top of the page. paper: a published table to be set beside the rows (experiments.reporting.paper_table).
    """
    from plotly.offline import get_plotlyjs

    groups = []
    for number, (name, members) in enumerate(groups_of(rows).items(), 1):
        for metric in drawn_metrics(members):
            draw_curves(members, folder / f"{number}-{metric}.png", metric)
        jobs = [
            {"label": label, "command": row.get("command", ""), **job_files(row)}
            for label, row in zip(labels(members), members, strict=True)
        ]
        sheet = folder / f"{number}-samples.png"
        samples = embedded_picture(sheet) if draw_sheet(members, sheet) else None
        told = {"name": name, "outcome": outcome(members), "samples": samples}
        groups.append({**told, "plots": plot_data(members), "table": table(members), "jobs": jobs})
    published = None
    if paper is not None:
        titles, lines = paper_table(rows, paper)
        published = {"title": paper["title"], "note": note(paper, rows), "titles": titles, "lines": lines}
    parts = {"title": title, "notes": notes, "paper": published, "groups": groups}
    path = folder / "index.html"
    write_text(path, rendered(TEMPLATE, autoescape=True, **parts, plotly=get_plotlyjs()))
    return path
