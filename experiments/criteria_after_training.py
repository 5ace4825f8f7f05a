"""Does what a criterion says before training tell what a student is worth after it? Rank correlations, a picture, a JSON file.

    python run.py -m experiment=random_sets task=uig
    python -m experiments.criteria_after_training outputs/uig/random_layers

The jobs removed random sets of layers and were trained alike. Of each set a criterion's scores are summed up, and the sums are
ranked against the students' distance to their teacher, before training and after it (TinyFusion, arXiv 2412.01199, found that
the calibration loss misleads). Further settings are those of run.py, such as calibration.data_rows=256.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.runtime.files import write_json
from common.runtime.progress import under_way
from experiments.shared.command_line import one_line_errors
from experiments.shared.row import HIGH, LOW, Figures, Row

CRITERIA = {  # settings of a method that scores layers
    "output loss": ["method=laptop_diff"],
    "task loss": ["method=laptop_diff", "method.criterion=task"],
    "alignment": ["method=laptop_diff", "method.criterion=alignment"],
    "block influence": ["method=block_influence"],
    "magnitude": ["method=magnitude"],
}
BEFORE = "measured before training"  # what the pruned networks' own distance tells of the students'
COLUMNS = ("", "before training", "95 %", "after training", "95 %")


def sets_of(folders: Sequence[Path], metric: str) -> list[Row]:
    """The rows of sets of layers that were trained alike; InputError where there are fewer than 6, or they are not alike."""
    from experiments.reporting.rows import but_for_seed, read_rows

    rows = [row for row in read_rows(folders) if metric in row["models"].get("distilled", {}) and row["plan"]]
    if len(rows) < 6:
        raise InputError(f"{len(rows)} trained students with {metric}; 6 are needed: python run.py -m experiment=random_sets.")
    if len({but_for_seed(row) for row in rows}) > 1:
        raise InputError("The jobs differ in more than their seeds; give a folder that holds those of one sweep.")
    return rows


def scores_of(row: Row, overrides: Sequence[str]) -> dict[str, float]:
    """What a criterion says of each layer of the rows' teacher, by its site."""
    from experiments.job.planning import calibrate
    from experiments.shared.job import Job

    settings = row["settings"]
    layers = [f"method.{name}={settings['method'][name]}" for name in ("ratio", "granularity", "width_changing")]
    same = [f"task={settings['task']['name']}", f"teacher.path={settings['teacher']['path']}", *layers]
    job = Job.compose(*same, *overrides)
    plan = job.method.plan(job.teacher.denoiser, calibrate(job), job.teacher.fingerprint(), job.cache / "scores")
    return plan.scores


def ranked(rows: Sequence[Row], sums: Sequence[float], metric: str) -> dict[str, Any]:
    """Sums of a criterion, and their correlations with the metric before training and after it."""
    from experiments.reporting.additivity_page import correlations

    values = {who: [row["models"][who][metric] for row in rows] for who in ("pruned", "distilled")}
    one_size = [1] * len(rows)
    return {"sums": list(sums), **{who: correlations(list(sums), found, one_size) for who, found in values.items()}}


def lines_of(found: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """One line of text a criterion, as COLUMNS says."""
    lines = []
    for name, figures in found.items():
        cells = [text for who in ("pruned", "distilled") for text in coefficient(figures[who])]
        lines.append([name, *(["", ""] if name == BEFORE else cells[:2]), *cells[2:]])
    return lines


def coefficient(figures: Figures) -> tuple[str, str]:
    """Spearman's, and its interval, as far as a coefficient can be."""
    low, high = (figures.get("spearman" + end) for end in (LOW, HIGH))
    interval = f"{max(-1.0, low):.2f} to {min(1.0, high):.2f}" if low is not None and high is not None else ""
    return f"{figures['spearman']:.2f}", interval


def draw(found: Mapping[str, Mapping[str, Any]], after: Sequence[float], title: str, path: Path) -> None:
    """The students' metric over what each criterion said of their layers."""
    from experiments.reporting.figures import plotting, save_figure

    figure, axes = plotting().subplots(1, len(found), figsize=(2.9 * len(found), 3), squeeze=False, sharey=True)
    for axis, (name, figures) in zip(axes.flat, found.items(), strict=True):
        axis.scatter(figures["sums"], after, s=14)
        axis.set_xlabel(name, fontsize=8)
        axis.set_title(f"rank {figures['distilled']['spearman']:.2f}", fontsize=8)
        axis.tick_params(labelsize=7)
    axes[0, 0].set_ylabel(f"{title}, after training", fontsize=8)
    figure.tight_layout()
    save_figure(figure, path, colours=64)


@one_line_errors
@under_way("ranking criteria")
def rank(arguments: argparse.Namespace) -> None:
    from common.runtime.console import PlainConsole, text_table
    from experiments.reporting.metric_table import find_metric

    folders = [Path(word) for word in arguments.words if "=" not in word]
    overrides = [word for word in arguments.words if "=" in word]
    if not folders:
        raise InputError("Give the folder of the jobs: outputs/uig/random_layers.")
    rows, metric = sets_of(folders, arguments.metric), arguments.metric
    captioned = rows[0]["settings"]["task"]["name"] == "t2i"
    before = [row["models"]["pruned"][metric] for row in rows]
    found = {BEFORE: ranked(rows, before, metric)}
    for name, given in CRITERIA.items():
        if name == "alignment" and not captioned:
            continue
        scores = scores_of(rows[0], [*given, *overrides])
        sums = [sum(scores[edit["site"]] for edit in row["plan"]) for row in rows]
        found[name] = ranked(rows, sums, metric)
    after = [row["models"]["distilled"][metric] for row in rows]
    document = {"settings": rows[0]["settings"], "metric": metric, "before": before, "after": after, "criteria": found}
    write_json(arguments.out / "criteria_after_training.json", document)
    draw(found, after, find_metric(metric).title, arguments.out / "criteria_after_training.png")
    console = PlainConsole(width=80)
    console.print()
    console.print(text_table(COLUMNS, lines_of(found)))
    console.print(
        f"\n{len(rows)} sets of layers: Spearman's coefficient of a criterion's sum over the removed layers and "
        f"{find_metric(metric).title}, with its 95 % interval over sets.",
        style="dim",
    )
    print(f"result and picture: {arguments.out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="folder or setting", help="of the jobs; settings of run.py")
    parser.add_argument("--metric", default="feature_mse")
    parser.add_argument("--out", default=Path("outputs/criteria_after_training"), type=Path)
    rank(parser.parse_intermixed_args())


if __name__ == "__main__":
    main()
