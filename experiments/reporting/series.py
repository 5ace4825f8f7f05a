"""Which result rows make one series of a plot, and the labels at its points."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from common.shown_text import shortened
from experiments.reporting.comparison import measured
from experiments.reporting.lookup import figures_of
from experiments.reporting.metric_table import half_width
from experiments.reporting.rows import KNOBS, but_for_seed, labels
from experiments.shared.row import Row

OFFSETS = ((3, 3), (3, -8), (-14, 3), (-14, -8))  # of a label from its point, in points of the page: the first that has room


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


class Label(NamedTuple):
    """What stands beside a point of a panel."""

    text: str
    x: float
    y: float
    colour: Any


def write_labels(axis: Any, labels: Sequence[Label]) -> None:
    """Each beside its point and none on another: one that has no room is left out. After the figure's layout."""
    window, taken = axis.get_window_extent(), []
    for label in labels:
        for offset in OFFSETS:
            note = axis.annotate(
                shortened(label.text, 12),
                (label.x, label.y),
                xytext=offset,
                textcoords="offset points",
                fontsize=6,
                color=label.colour,
            )
            box = note.get_window_extent()
            inside = window.x0 <= box.x0 and box.x1 <= window.x1 and window.y0 <= box.y0 and box.y1 <= window.y1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            note.remove()
