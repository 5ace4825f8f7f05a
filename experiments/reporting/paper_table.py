"""A paper's table or figure with what was measured here beside it, from the `table` of an experiment's configuration:

    title, source     what it is, and where it was published
    columns           titles of the published figures
    lines             of name, published (as many as columns; none where nothing was published) and ours, a selector
                      (experiments.reporting.lookup) of the row to set beside it

Models, data and metrics differ: it is the order of the lines that can be compared, not a number.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.reporting.comparison import SeedNoise, difference, interval, measured
from experiments.reporting.lookup import Selector, find, find_all
from experiments.reporting.metric_table import METRICS, short_title
from experiments.reporting.rows import distance_name, metric_names, value_of
from experiments.shared.row import Row

PUBLISHED = (
    "Left of |: as published. Right: measured here, on another model and by another metric; compare the order, no number. "
)
OURS = "left: parameters that are not zero; time: a forward pass; both against the teacher."
SAME_METRICS = "Left of |: as published. Right: measured here, by the published metrics where the names agree. "
HALVES = " ±: 95 % interval of samples, and of seeds where several were run."
AFTER = " after: that share of the training."
FORMS = {"left": "{:.0%}", "zeros": "{:.1%}", "time": "{:.2f}x", "after": "{:.0%}", "FD": "{:.1f}", "FAD": "{:.2f}"}
FORMS |= {short_title(name): metric.form for name, metric in METRICS.items()}
AS_PUBLISHED = ("fid", "fad_vggish", "inception_score", "clip_score", "pickscore")  # where measured, instead of ours
TO_TEACHER = "feature_mse"
PREFERRED = ("pickscore", "clip_score", "caption_retrieval", "feature_mse", "latent_mse")


def our_columns(rows: Sequence[Row], count: int) -> dict[str, str]:
    """Which of our figures a table shows, by title: sizes, time and the first `count` metrics."""
    names = metric_names(rows)
    same = [name for name in AS_PUBLISHED if name in names]
    others = [] if same else [distance_name(rows[0])]
    metrics = list(dict.fromkeys([*same, *others, *(name for name in PREFERRED if name in names)]))[:count]
    sizes = {"left": "left", "zeros": "sparsity_actual", "time": "time", "after": "after"}
    return sizes | {short_title(name): name for name in metrics}


def cell(title: str, value: float | None) -> str:
    """One of our figures as text; empty where it was not measured, and for the few zeros that dense networks have by chance."""
    if value is None or (title == "zeros" and value < 0.0005):
        return ""
    return FORMS[title].format(value)


def half_text(rows: Sequence[Row], selector: Selector, title: str, name: str, noise: SeedNoise) -> str:
    """Half of the 95 % interval of a metric, of samples and of seeds, such as " ±0.41"; "" where none is known."""
    figure = measured(find_all(rows, selector), name)
    half = interval(figure, name, noise).half if figure is not None and figure.estimate.replicates else 0.0
    return f" ±{FORMS[title].format(half).removesuffix('%')}" if half else ""


def paper_table(rows: Sequence[Row], table: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Titles and lines of text; what was not measured, or not published, is empty."""
    ours = our_columns(rows, 3 if len(table["columns"]) <= 3 else 2)  # as many as 80 characters hold
    figures = [find(rows, line["ours"]) or {} for line in table["lines"]]
    shown = {title: name for title, name in ours.items() if any(cell(title, found.get(name)) for found in figures)}
    bar = ["|"] if table["columns"] else []
    lines, noise = [], SeedNoise(rows)
    for line, found in zip(table["lines"], figures, strict=True):
        published = list(line.get("published") or [""] * len(table["columns"]))
        cells = [cell(title, found.get(name)) for title, name in shown.items()]
        if not table["columns"]:  # there is room
            halves = [half_text(rows, line["ours"], title, name, noise) for title, name in shown.items()]
            cells = [text + half for text, half in zip(cells, halves, strict=True)]
        lines.append([line["name"], *published, *bar, *cells])
    return ["", *table["columns"], *bar, *shown], lines


def own_protocol(table: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """What keeps an FID of text to image from being one on MS-COCO, as published ones are; "" where nothing does."""
    if "FID" not in table["columns"]:
        return ""
    protocols = [row["protocol"] for row in rows if value_of(row, "task.name") == "t2i" and "fid" in row["models"]["teacher"]]
    own = []
    if any(protocol.get("prompts") is None for protocol in protocols):
        own.append("captions are task.data's (no evaluation.prompts)")
    if any(protocol.get("metrics", {}).get("fid", {}).get("reference") is None for protocol in protocols):
        own.append("FID is to images of task.data (no metrics.fid.reference)")
    return f"But {' and '.join(own)}: compare the order, no number. " if own else ""


def note(table: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """What a reader of the table must know."""
    told = SAME_METRICS + own_protocol(table, rows) if set(AS_PUBLISHED) & set(metric_names(rows)) else PUBLISHED
    after = AFTER if any("at" in line["ours"] for line in table["lines"]) else ""
    return f"{table['source']}. {told if table['columns'] else ''}{OURS}{after}{'' if table['columns'] else HALVES}"


def told_apart(rows: Sequence[Row], table: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Students of a table by how far they are from their teacher, and of each those that are farther by more than chance.

    Titles and lines of text. Farther: the 95 % interval of the difference, compared in pairs, leaves out 0. No lines where no
    distance to the teacher was measured, and for tables of published figures.
    """
    known, noise = {}, SeedNoise(rows)
    for line in table["lines"]:
        if line["ours"].get("model", "student") == "student" and not table["columns"]:
            figure = measured(find_all(rows, line["ours"]), TO_TEACHER)
            if figure is not None and figure.estimate.replicates:
                known[line["name"]] = figure
    order = sorted(known, key=lambda name: known[name].estimate.value)
    lines = []
    for place, name in enumerate(order):
        figure = interval(known[name], TO_TEACHER, noise)
        farther = [other for other in order[place + 1 :] if difference(known[name], known[other], TO_TEACHER, noise).below(0)]
        lines.append([name, " ±".join(map(METRICS[TO_TEACHER].form.format, (figure.value, figure.half))), ", ".join(farther)])
    return ["", short_title(TO_TEACHER), "nearer to the teacher than"], lines


def print_paper_table(rows: Sequence[Row], table: Mapping[str, Any]) -> None:
    """The table within 80 columns, with where it is from."""
    from common.runtime.console import PlainConsole, text_table

    drawn = text_table(*paper_table(rows, table))
    console = PlainConsole(width=80)
    console.print(f"\n{table['title']}", style="bold")
    console.print(drawn)
    console.print(f"\n{note(table, rows)}\n", style="dim")


def markdown(titles: Sequence[str], lines: Sequence[Sequence[str]], words: int = 1) -> str:
    """A table in Markdown: the first `words` columns to the left, and numbers to the right."""
    rows = [titles, ["---" if place < words else "---:" for place in range(len(titles))], *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
