"""Prunes at once and in steps, with equal training, and shows both against the original: a table, a picture, a JSON file.

    python -m experiments.in_steps task=uig method=magnitude --removed 0.3,0.45,0.6 --stages 3 --steps 300

Settings are those of run.py, of a method whose removal is a ratio of the parameters. In steps, each stage's student is the
next one's teacher: equal shares of the removal, and of the optimiser steps. Each job is a command of run.py, which is
printed; what was done before is found again.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from common.errors import InputError
from common.runtime.files import ROOT, write_json
from experiments.shared.command_line import one_line_errors
from experiments.shared.row import Row

FEW = "evaluation.images=16"  # of students between, which are not compared


def run(folder: Path, overrides: Sequence[str]) -> Row:
    """The row of the job in `folder`, which is run where it is not there; ends as the job does where it fails."""
    from experiments.reporting.rows import read_row

    words = ["run.py", *overrides, f"hydra.run.dir={folder}"]
    print(f"\n$ python {shlex.join(words)}", flush=True)
    ended = subprocess.run([sys.executable, str(ROOT / words[0]), *words[1:]])
    if ended.returncode:
        sys.exit(ended.returncode)
    return read_row(folder / "result.json", "delete it and the job ends anew")


def parameters(row: Row) -> tuple[int, int]:
    """Of the job's teacher, and of its student."""
    models = row["models"]
    return models["teacher"]["parameters"], models.get("distilled", models["pruned"])["parameters"]


def others(overrides: Sequence[str]) -> list[str]:
    """The settings without those that say how a student is made."""
    return [word for word in overrides if not word.startswith(("method", "distill", "preset", "replacement"))]


def pruned_in_stages(folder: Path, overrides: Sequence[str], removed: float, stages: int, steps: int) -> Row:
    """The row of the last student, measured against the original."""
    teacher, original, left = [], 0, 0
    for stage in range(1, stages + 1):
        wanted = removed / stages if not original else 1 - original * (1 - removed * stage / stages) / left
        share = [f"method.ratio={wanted:.4f}", f"distill.steps={steps // stages}"]
        row = run(folder / f"stage_{stage}", [*overrides, *teacher, *share, FEW])
        first, left = parameters(row)
        original = original or first
        teacher = [f"teacher.path={folder / f'stage_{stage}' / 'student'}"]
    student = f"method.path={folder / f'stage_{stages}' / 'student'}"
    return run(folder / "against_the_original", [*others(overrides), "method=published", student, "distill=none"])


def draw(pairs: Sequence[tuple[Row, Row]], path: Path, metric: str, names: Sequence[str]) -> None:
    """The metric over the parameters that are left, a line for each way."""
    from experiments.reporting.figures import plotting, save_figure
    from experiments.reporting.lookup import figures_of
    from experiments.reporting.metric_table import find_metric
    from experiments.shared.row import HIGH, LOW

    figure, axis = plotting().subplots(figsize=(5.2, 3.6))
    for name, rows in zip(names, zip(*pairs, strict=True), strict=True):
        found = [figures_of(row, {}) for row in rows]
        values = [figures[metric] for figures in found]
        bounds = [[figures.get(metric + side, figures[metric]) for figures in found] for side in (LOW, HIGH)]
        away = [[abs(bound - value) for bound, value in zip(side, values, strict=True)] for side in bounds]
        left = [100 * figures["left"] for figures in found]
        axis.errorbar(left, values, yerr=away, marker="o", markersize=4, capsize=3, label=name)
    axis.set_xlabel("parameters left, %")
    axis.set_ylabel(find_metric(metric).title)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    figure.tight_layout()
    save_figure(figure, path, colours=64)


def lines_of(pairs: Sequence[tuple[Row, Row]], metrics: Sequence[str]) -> list[list[str]]:
    """What is left, and each metric of both ways with the paired difference."""
    from experiments.reporting.comparison import SeedNoise, difference, measured
    from experiments.reporting.lookup import figures_of
    from experiments.reporting.metric_table import metric_text

    lines = []
    for pair in pairs:
        found = [figures_of(row, {}) for row in pair]
        left = " / ".join(f"{each['left']:.0%}" for each in found)
        line = [left]
        for metric in metrics:
            ways = [measured([each], metric) for each in found]
            apart = difference(ways[1], ways[0], metric, SeedNoise([])) if all(ways) else None
            told = "" if apart is None else f"{apart.value:+.3g} ±{apart.half:.2g}"
            line += [*(metric_text(each, metric) for each in found), told]
        lines.append(line)
    return lines


@one_line_errors
def compare(arguments: argparse.Namespace) -> None:
    from common.runtime.console import PlainConsole, text_table
    from common.runtime.content import content_name
    from experiments.reporting.metric_table import short_title
    from experiments.reporting.rows import drawn_metrics

    if arguments.stages < 2 or arguments.steps < arguments.stages:
        raise InputError("--stages must be 2 or more, and --steps at least as many.")
    if not arguments.removed or not all(0 < share < 1 for share in arguments.removed):
        raise InputError("--removed takes shares between 0 and 1 with commas between: 0.3,0.45,0.6.")
    overrides = arguments.settings
    if taken := [word for word in overrides if word.startswith(("method.ratio", "distill.steps", "hydra", "outputs", "-"))]:
        raise InputError(f"{taken[0]} is not for this command, which sets ratio, steps and folders: --removed, --steps, --out.")
    name = content_name(overrides, arguments.stages, arguments.steps)[:8]
    folder = (arguments.out / name).absolute()
    pairs = []
    for removed in arguments.removed:
        shared = [*overrides, f"outputs={arguments.out.absolute()}"]
        once = [f"method.ratio={removed}", f"distill.steps={arguments.steps}"]
        at_once = run(folder / f"{removed}_at_once", [*shared, *once])
        in_stages = pruned_in_stages(folder / f"{removed}_in_steps", shared, removed, arguments.stages, arguments.steps)
        pairs.append((at_once, in_stages))
    metrics = drawn_metrics([row for pair in pairs for row in pair])
    names = ("at once", f"in {arguments.stages} steps")
    for metric in metrics:
        draw(pairs, folder / f"{metric}.png", metric, names)
    write_json(folder / "in_steps.json", {"settings": overrides, "names": names, "rows": pairs})
    columns = ["left", *(text for metric in metrics for text in (f"{short_title(metric)}: at once", "in steps", "difference"))]
    console = PlainConsole(width=100)
    console.print()
    console.print(text_table(columns, lines_of(pairs, metrics)))
    console.print("\ndifference: in steps minus at once, of equal seeds in pairs, ± half of its 95 % interval over samples.")
    print(f"pictures and rows: {folder}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", help="of run.py, such as task=uig method=magnitude")
    parser.add_argument("--removed", default=[0.3, 0.45, 0.6], type=lambda text: [float(word) for word in text.split(",")])
    parser.add_argument("--stages", default=3, type=int)
    parser.add_argument("--steps", default=300, type=int, help="optimiser steps in all")
    parser.add_argument("--out", default=Path("outputs/in_steps"), type=Path)
    compare(parser.parse_intermixed_args())


if __name__ == "__main__":
    main()
