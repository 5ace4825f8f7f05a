"""What result rows tell over a quantity: the points, and pictures of them.

over parameters, MACs, time, k, ratio, sparsity   one point a job (LD-Pruner, figure 7a; LAPTOP-Diff, figure 1)
over optimiser steps                              of jobs with evaluation.every (LD-Pruner, figure 5)
over sampling steps                               of jobs with evaluation.more_steps (L1-Diff's table)
"""

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.reporting.comparison import measured
from experiments.reporting.figures import Label, logarithmic, picture_label, plotting, save_figure, write_labels
from experiments.reporting.lookup import figures_of
from experiments.reporting.metric_table import find_metric, half_width
from experiments.reporting.rows import (
    KNOBS,
    but_for_seed,
    distance_name,
    labels,
    metric_names,
    nonzero_parameters,
    student,
)
from experiments.shared.row import Row

Points = list[tuple[float, float]]
# what a job costs: title, and how to read it from the row
COSTS: dict[str, tuple[str, Callable[[Row, dict[str, Any]], Any]]] = {
    "parameters": ("parameters that are not zero (millions)", lambda row, figures: nonzero_parameters(figures) / 1e6),
    "macs": ("MACs (millions)", lambda row, figures: figures["macs"] / 1e6),
    "latency": ("time of a forward pass, teacher = 1", lambda row, figures: figures["latency"]["ratio"]),
    **{
        knob: (f"method.{knob}", lambda row, figures, knob=knob: row["settings"]["method"][knob])
        for knob in KNOBS
        if knob not in ("variant", "parameters")  # the one is no number, the other has its place already
    },
}


def cost(row: Row, who: str, name: str) -> float | None:
    """One of COSTS of one model; None where the row does not have it (another method's k, say)."""
    try:
        value = COSTS[name][1](row, row["models"][who])
    except (KeyError, TypeError):
        return None
    return value if isinstance(value, int | float) else None


def costs_of(rows: Sequence[Row]) -> list[str]:
    """The names of the COSTS that some of the rows have; a method's knob only where it was turned."""
    found = {name: {cost(row, student(row), name) for row in rows} - {None} for name in COSTS}
    return [name for name, values in found.items() if len(values) > (name in KNOBS and name != "parameters")]


def training_points(row: Row, metric: str) -> Points:
    """(optimiser steps, metric), from the pruned network to the finished student; empty without measurements between."""
    between = [(point["step"], point[metric]) for point in row.get("curve", []) if metric in point]
    if not between:
        return []
    models = row["models"]
    ends = [(0, models["pruned"][metric]), (row["settings"]["distill"]["steps"], models[student(row)][metric])]
    return sorted([*ends, *between])


def sampling_points(row: Row, who: str, metric: str) -> Points:
    """(sampling steps, metric) of one model; empty where only one number of steps was measured."""
    others = [(int(steps), models[who][metric]) for steps, models in row.get("by_steps", {}).items() if metric in models[who]]
    return sorted([(row["protocol"]["steps"], row["models"][who][metric]), *others]) if others else []


class Point(NamedTuple):
    """Rows that differ in their seed alone, with the value of the knob that was swept; None where none was."""

    knob: float | None
    rows: list[Row]

    def metric(self, name: str) -> tuple[float, float] | None:
        """The mean over seeds and half of its interval (0 where none is known); None where one of the rows lacks it."""
        figures = [figures_of(row, {}) for row in self.rows]
        found = measured(figures, name)
        if found is None:
            return None
        half = found.estimate.half_width if found.estimate.replicates else half_width(figures[0], name)
        return found.estimate.value, half or 0.0


def turned_knob(row: Row) -> str | None:
    """The knob of the row's method that a sweep is usually over and that is a number."""
    method = row["settings"]["method"]
    return next((name for name in KNOBS if isinstance(method.get(name), int | float)), None)


def series_of(rows: Sequence[Row]) -> dict[str, list[Point]]:
    """Points by the name of their series: rows that differ in their knob and seed alone, in the order of the knob."""
    series: dict[str, dict[str, list[Row]]] = {}
    heads: list[Row] = []
    for row in rows:
        head = without_knob(row)
        name = but_for_seed(head)
        if name not in series:
            heads.append(head)
        series.setdefault(name, {}).setdefault(but_for_seed(row), []).append(row)
    found = {}
    for label, points in zip(labels(heads), series.values(), strict=True):
        knobs = [(turned_knob(members[0]), members) for members in points.values()]
        made = [Point(members[0]["settings"]["method"][knob] if knob else None, members) for knob, members in knobs]
        found[label] = sorted(made, key=lambda point: (point.knob is not None, point.knob))
    return found


def without_knob(row: Row) -> Row:
    """The row as if its knob had not been turned."""
    method = {name: value for name, value in row["settings"]["method"].items() if name != turned_knob(row)}
    return {**row, "settings": {**row["settings"], "method": method}}


def draw_cost(axis: Any, rows: Sequence[Row], metric: str, name: str) -> list[Label]:
    """One colour a series, whose points are joined where a knob was swept; the teacher as a level.

    What is to be written beside the points: the knob, unless it is the axis.
    """
    beside = []
    for place, (title, points) in enumerate(series_of(rows).items()):
        found = []
        for point in points:
            costs, figure = [cost(row, student(row), name) for row in point.rows], point.metric(metric)
            if None not in costs and figure is not None:
                found.append((statistics.fmean(costs), *figure, point.knob))
        if not found:
            continue
        xs, ys, halves, knobs = zip(*found, strict=True)
        joined = len(set(knobs)) == len(found) > 2
        bars = halves if any(halves) else None
        form = {"fmt": "o-" if joined else "o", "markersize": 4, "linewidth": 0.8, "elinewidth": 0.8}
        colour = f"C{place % 10}"  # the same in all panels
        axis.errorbar(xs, ys, bars, color=colour, label=picture_label(title), **form)
        if len(found) > 1 and (name not in KNOBS or name == "parameters"):
            beside += [Label(f"{knob:g}", x, y, colour) for x, y, _, knob in found if knob is not None]
    draw_teacher(axis, rows, metric)
    axis.set(xlabel=COSTS[name][0])
    return beside


def teacher_level(rows: Sequence[Row], metric: str) -> float | None:
    """The teacher's figure, the same in all rows of a group that have it."""
    return next((row["models"]["teacher"][metric] for row in rows if metric in row["models"]["teacher"]), None)


def draw_teacher(axis: Any, rows: Sequence[Row], metric: str) -> None:
    level = teacher_level(rows, metric)
    if level is not None:
        axis.axhline(level, color="k", linewidth=0.8, linestyle="--", label="teacher")


def draw_lines(axis: Any, rows: Sequence[Row], points: Callable[[Row], Points]) -> None:
    """One line a job that has points."""
    for name, row in zip(labels(rows), rows, strict=True):
        if found := points(row):
            axis.plot(*zip(*found, strict=True), marker="o", markersize=3, label=picture_label(name))


def draw_training(axis: Any, rows: Sequence[Row], metric: str) -> None:
    """One line a job, the teacher as a level."""
    draw_lines(axis, rows, lambda row: training_points(row, metric))
    draw_teacher(axis, rows, metric)
    axis.set(xlabel="optimiser steps")


def draw_sampling(axis: Any, rows: Sequence[Row], metric: str) -> None:
    """One line a job, and the teacher's."""
    draw_lines(axis, rows, lambda row: sampling_points(row, student(row), metric))
    teacher = [found for row in rows if (found := sampling_points(row, "teacher", metric))][-1]
    axis.plot(*zip(*teacher, strict=True), "k*--", linewidth=0.8, label="teacher")
    axis.set(xlabel="sampling steps")
    logarithmic(axis, "x")


def draw_curves(rows: Sequence[Row], path: Path, metric: str | None = None) -> None:
    """A panel for each thing that the rows of one group (same task, teacher and protocol) hold `metric` over, as a PNG.

    metric: one of metric_names; the Fréchet distance by default.
    """
    from functools import partial

    metric = metric or distance_name(rows[0])
    panels: list[Callable[..., list[Label] | None]] = [partial(draw_cost, name=name) for name in costs_of(rows)]
    panels += [draw_training] if any(training_points(row, metric) for row in rows) else []
    panels += [draw_sampling] if any(sampling_points(row, "teacher", metric) for row in rows) else []
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plotting().subplots(lines, columns, figsize=(5.2 * columns, 4 * lines), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    beside = [draw(axis, rows, metric) for axis, draw in zip(axes.flat, panels, strict=False)]
    for axis in axes.flat[: len(panels)]:
        axis.set_ylabel(find_metric(metric).title)
        axis.legend(fontsize=6)
    figure.tight_layout()
    for axis, labels_of_panel in zip(axes.flat, beside, strict=False):
        write_labels(axis, labels_of_panel or [])
    save_figure(figure, path, colours=64)


def plot_data(rows: Sequence[Row]) -> dict[str, Any]:
    """All points of the rows of one group, for interactive plots: see experiments/reporting/page.html."""
    metrics = metric_names(rows)
    names = costs_of(rows)

    def metrics_of(figures: dict[str, Any]) -> dict[str, Any]:
        return {metric: figures.get(metric) for metric in metrics}

    points = [(title, point) for title, points in series_of(rows).items() for point in points]
    series = {id(row): (title, point.knob) for title, point in points for row in point.rows}
    jobs = []
    for label, row in zip(labels(rows), rows, strict=True):
        who = student(row)
        jobs.append(
            {
                "label": label,
                "series": series[id(row)][0],
                "knob": series[id(row)][1],
                "command": row.get("command", ""),
                "costs": {name: cost(row, who, name) for name in names},
                "metrics": metrics_of(row["models"][who]),
                "halves": {metric: half_width(row["models"][who], metric) for metric in metrics},
                "pruned": metrics_of(row["models"]["pruned"]),
                "training": {metric: training_points(row, metric) for metric in metrics},
                "sampling": {metric: sampling_points(row, who, metric) for metric in metrics},
            }
        )
    teacher = {metric: [sampling_points(row, "teacher", metric) for row in rows] for metric in metrics}
    found = {
        "metrics": {metric: find_metric(metric).title for metric in metrics},
        "higher": [metric for metric in metrics if find_metric(metric).higher],
        "costs": {name: COSTS[name][0] for name in names},
        "jobs": jobs,
        "teacher": {metric: teacher_level(rows, metric) for metric in metrics},
        "teacher_sampling": {metric: max(lines, key=len) for metric, lines in teacher.items()},
    }
    return json.loads(json.dumps(found), parse_constant=lambda name: None)  # JSON has no NaN
