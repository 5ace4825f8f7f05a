"""Draws what result rows tell over a quantity: curves.png, with what the rows hold of three panels.

python -m experiments.curves outputs --out curves.png

    distance over the time of a forward pass    one point a job: speed against quality (LD-Pruner, figure 7a)
    distance over optimiser steps               of jobs with evaluation.every (LD-Pruner, figure 5)
    distance over sampling steps                of jobs with evaluation.more_steps (L1-Diff's table)
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common.errors import InputError
from experiments.command_line import one_line_errors
from experiments.rows import changed_settings, distance_name, group_name, read_rows, student

Row = dict[str, Any]
Points = list[tuple[float, float]]


def training_points(row: Row) -> Points:
    """(optimiser steps, distance), from the pruned network to the finished student; empty without measurements between."""
    if not row.get("curve"):
        return []
    name = distance_name(row)
    ends = [(0, row["models"]["pruned"][name]), (row["settings"]["distill"]["steps"], row["models"][student(row)][name])]
    return sorted([*ends, *((point["step"], point[name]) for point in row["curve"])])


def sampling_points(row: Row, who: str) -> Points:
    """(sampling steps, distance) of one model; empty where only one number of steps was measured."""
    if not row.get("by_steps"):
        return []
    name = distance_name(row)
    here = (row["protocol"]["steps"], row["models"][who][name])
    return sorted([here, *((int(steps), models[who][name]) for steps, models in row["by_steps"].items())])


def labels(rows: Sequence[Row]) -> list[str]:
    """What a legend calls each job."""
    settings = changed_settings(list(rows))
    return [f"{row.get('choices', {}).get('method', '')} {words}".strip() for row, words in zip(rows, settings, strict=True)]


def draw_speed(axis: Any, rows: Sequence[Row]) -> None:
    """One point a job, one colour a method."""
    named = list(zip(labels(rows), rows, strict=True))
    for method in sorted({row.get("choices", {}).get("method", "") for row in rows}):
        found = [(name, row["models"][student(row)]) for name, row in named if name.split(" ")[0] == method]
        times = [figures["latency"]["ratio"] for _, figures in found]
        distances = [figures[distance_name(rows[0])] for _, figures in found]
        axis.plot(times, distances, "o", markersize=4, label=method)
        for (name, _), x, y in zip(found, times, distances, strict=True):
            axis.annotate(name.removeprefix(method), (x, y), fontsize=5.5, xytext=(2, 3), textcoords="offset points")
    axis.plot([1], [rows[0]["models"]["teacher"][distance_name(rows[0])]], "k*", label="teacher")
    axis.set(xlabel="time of a forward pass, teacher = 1", title="speed and quality")


def draw_training(axis: Any, rows: Sequence[Row]) -> None:
    """One line a job, the teacher as a level."""
    for name, row in zip(labels(rows), rows, strict=True):
        if training_points(row):
            axis.plot(*zip(*training_points(row), strict=True), marker="o", markersize=3, label=name)
    teacher = rows[0]["models"]["teacher"][distance_name(rows[0])]
    axis.axhline(teacher, color="k", linewidth=0.8, linestyle="--", label="teacher")
    axis.set(xlabel="optimiser steps", title="during training")


def draw_sampling(axis: Any, rows: Sequence[Row]) -> None:
    """One line a job, and the teacher's."""
    for name, row in zip(labels(rows), rows, strict=True):
        if sampling_points(row, student(row)):
            axis.plot(*zip(*sampling_points(row, student(row)), strict=True), marker="o", markersize=3, label=name)
            teacher = sampling_points(row, "teacher")
    axis.plot(*zip(*teacher, strict=True), "k*--", linewidth=0.8, label="teacher")
    axis.set(xlabel="sampling steps", title="over sampling steps", xscale="log")


def draw_curves(rows: Sequence[Row], path: Path) -> None:
    """The panels of the rows of one group (same task, teacher and protocol) as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from common.pictures import save_figure

    panels: list[Callable[[Any, Sequence[Row]], None]] = [draw_speed]
    panels += [draw_training] if any(row.get("curve") for row in rows) else []
    panels += [draw_sampling] if any(row.get("by_steps") for row in rows) else []
    figure, axes = pyplot.subplots(1, len(panels), figsize=(5.4 * len(panels), 4.2), squeeze=False)
    for axis, draw in zip(axes[0], panels, strict=True):
        draw(axis, rows)
        axis.set_ylabel(distance_name(rows[0]))
        axis.legend(fontsize=6)
    figure.tight_layout()
    save_figure(figure, path)


@one_line_errors
def curves(arguments: argparse.Namespace) -> None:
    """Reads the rows and draws them; InputError when they are not of one task, teacher and protocol."""
    rows = read_rows(arguments.folders)
    groups = {group_name(row) for row in rows}
    if len(groups) > 1:
        raise InputError(f"The rows are of {len(groups)} kinds: {'; '.join(sorted(groups))}. Give folders of one kind.")
    draw_curves(rows, arguments.out)
    print(f"{len(rows)} jobs: {arguments.out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("curves.png"))
    curves(parser.parse_args())


if __name__ == "__main__":
    main()
