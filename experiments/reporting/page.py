"""One page about many jobs: plots, a table, pictures and sounds, in a single file that needs no network."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.runtime.files import write_text
from experiments.reporting.curves import COSTS, cost, draw_curves, plot_data
from experiments.reporting.metric_table import is_drawn
from experiments.reporting.paper_table import note, paper_table
from experiments.reporting.rows import Row, groups_of, labels, metric_names, recipe, student

TEMPLATE = Path(__file__).with_name("page.html")


PICTURES = {"samples.png": "samples from equal seeds", "plan.png": "plan", "scores.png": "scores", "sparsity.png": "sparsity"}


PICTURE_WIDTH = 900


SOUNDS = 6  # audio players of one job


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


def embedded_sound(path: Path) -> str:
    return f"data:audio/wav;base64,{base64.b64encode(path.read_bytes()).decode()}"


def job_files(row: Row) -> dict[str, list[tuple[str, str]]]:
    """(title, data URL) of what lies beside a row: "pictures", and "sounds" in equal numbers of each model."""
    folder = Path(row["path"]).parent
    pictures = [(title, embedded_picture(folder / name)) for name, title in PICTURES.items() if (folder / name).is_file()]
    found = sorted(folder.glob("sounds/*.wav"), key=lambda path: path.stem.rpartition("_")[::-1])
    return {"pictures": pictures, "sounds": [(path.stem, embedded_sound(path)) for path in found[:SOUNDS]]}


def table(rows: Sequence[Row]) -> dict[str, Any]:
    """Columns and cells of the sortable table; a cell that is None is empty."""
    metrics = metric_names(rows)
    names = ("parameters", "macs", "latency")
    cells = []
    for label, row in zip(labels(rows), rows, strict=True):
        who = student(row)
        figures = [cost(row, who, name) for name in names] + [row["models"][who].get(metric) for metric in metrics]
        finite = [value if value is None or math.isfinite(value) else None for value in figures]
        cells.append([label, recipe(row), *finite, row.get("command", "")])
    return {"columns": ["job", "distill", *(COSTS[name][0] for name in names), *metrics, "command"], "cells": cells}


def write_report(
    rows: Sequence[Row], folder: Path, title: str, notes: Sequence[str] = (), paper: Mapping[str, Any] | None = None
) -> Path:
    """Writes <folder>/index.html and PNG files of each group of rows.

    notes: lines at the top of the page. paper: a published table to be set beside the rows (experiments.reporting.paper_table).
    """
    from jinja2 import Environment
    from plotly.offline import get_plotlyjs

    groups = []
    for number, (name, members) in enumerate(groups_of(rows).items(), 1):
        for metric in filter(is_drawn, metric_names(members)):
            draw_curves(members, folder / f"{number}-{metric}.png", metric)
        jobs = [
            {"label": label, "command": row.get("command", ""), **job_files(row)}
            for label, row in zip(labels(members), members, strict=True)
        ]
        groups.append({"name": name, "plots": plot_data(members), "table": table(members), "jobs": jobs})
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    published = None
    if paper is not None:
        titles, lines = paper_table(rows, paper)
        published = {"title": paper["title"], "note": note(paper, rows), "titles": titles, "lines": lines}
    parts = {"title": title, "notes": notes, "paper": published, "groups": groups}
    path = folder / "index.html"
    write_text(path, page.render(**parts, plotly=get_plotlyjs()))
    return path
