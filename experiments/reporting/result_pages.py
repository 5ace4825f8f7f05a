"""The page of an experiment's result rows on one task: a paper's table beside ours, all jobs, pictures, samples.

What a job has left beside its row may have been deleted: the page is made of what is there.
"""

import io
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.runtime.files import write_atomically, write_json, write_text
from common.runtime.strict_json import read_json, to_json
from common.shown_text import code_block, markdown_text, spelt_out
from experiments.reporting.metric_table import find_metric
from experiments.reporting.paper_table import markdown, note, paper_table, told_apart
from experiments.reporting.rows import ROWS_FILE, distance_name, drawn_metrics, groups_of
from experiments.reporting.sample_sheet import SAMPLES, draw_sheet
from experiments.shared.row import Row


def shown_command(command: str) -> str:
    """The command without where it wrote and where else it read: of an absolute path its last part is left.

    One that no shell would read is given as it is.
    """
    try:
        words = shlex.split(command)
    except ValueError:  # a row that somebody edited
        return command
    return shlex.join(place_left_out(word) for word in words if not word.startswith(("outputs=", "logging=")))


DIGITS = 7
PLACE = re.compile(r"(?<![\w.:/])~?/(?:[^\s,\[\]{}'\"/]+/)*([^\s,\[\]{}'\"/]+)")  # a path of this machine, and its last part


def place_left_out(word: str) -> str:
    """A word of a command, "setting=value", with a path of this machine, also inside lists and mappings, as its name alone."""
    name, equals, value = word.partition("=")
    if equals and Path(value).expanduser().is_absolute():
        return f"{name}={Path(value).name}"
    return name + equals + PLACE.sub(r"\1", value) if equals else word


def without_places(value: Any) -> Any:
    """Settings and what is in them, paths of this machine as their names alone."""
    if isinstance(value, dict):
        return {name: without_places(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(each) for each in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def table_of_jobs(rows: Sequence[Row]) -> str:
    """The table of experiments.collect, as text."""
    from common.runtime.console import PlainConsole
    from experiments.reporting.job_table import table_of

    console = PlainConsole(width=100, file=io.StringIO())
    console.print(table_of(list(rows), distance_name(rows[0])))
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def table_beside_ours(rows: Sequence[Row], table: Mapping[str, Any], where: Path) -> list[str]:
    """The published table with ours, or the line why there is none: the jobs may be more than its lines tell apart."""
    try:
        titles, lines = paper_table(rows, table)
        shown = markdown([*map(markdown_text, titles)], [[*map(markdown_text, line)] for line in lines])
        lines = [f"## {markdown_text(table['title'])}", "", shown, "", markdown_text(note(table, rows)), ""]
        titles, told = told_apart(rows, table)
        if told:
            shown = markdown([*map(markdown_text, titles)], [[*map(markdown_text, line)] for line in told])
            lines += ["Which differences are larger than their 95 % intervals, compared in pairs:", "", shown, ""]
        return lines
    except InputError as error:
        print(spelt_out(f"{where}: no table beside the published one: {error}"), file=sys.stderr)
        return [markdown_text(f"No table beside the published one ({table['title']}): {error}"), ""]


def write_group(rows: Sequence[Row], folder: Path, prefix: str) -> dict[Path, str]:
    """The pictures of rows that compare, and what each shows: metrics over costs, and samples where they are there."""
    from experiments.reporting.curves import draw_curves

    found = {}
    for metric in drawn_metrics(rows):
        path = folder / f"{prefix}{metric}.png"
        draw_curves(rows, path, metric)
        found[path] = find_metric(metric).title
    sheet = folder / f"{prefix}samples.webp"
    return found | ({sheet: SAMPLES} if draw_sheet(rows, sheet) else {})


def published(row: Row) -> str:
    """A row as JSON without where it lay and where its job wrote, its numbers with DIGITS digits."""
    kept = {key: shown_command(value) if key == "command" else value for key, value in row.items() if key != "path"}
    return to_json(with_digits(kept), separators=(",", ":"))


def with_digits(value: Any) -> Any:
    """A document whose floating-point numbers have DIGITS significant digits."""
    if isinstance(value, dict):
        return {name: with_digits(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [with_digits(each) for each in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def write_page(sweep: Mapping[str, Any], rows: Sequence[Row], done: int, folder: Path) -> None:
    """README.md with its pictures, rows.jsonl (without where the rows lay) and sweep.json.

    sweep: command (a line each, where there are several), experiment, task, table, and the number of jobs that were asked
    for, of which `done` have a row.
    """
    lines = [f"# {markdown_text(sweep['experiment'])}, {markdown_text(sweep['task'])}", ""]
    lines += [*(f"    {spelt_out(command)}" for command in sweep["command"].splitlines()), ""]
    if done < sweep["jobs"]:
        lines += [f"{done} of {sweep['jobs']} jobs: the others failed, or were deleted.", ""]
    if sweep["table"] is not None:
        lines += table_beside_ours(rows, sweep["table"], folder)
    groups, pictures = groups_of(rows), []
    for number, (name, members) in enumerate(groups.items(), 1):
        drawn = write_group(members, folder, f"{number}-" if len(groups) > 1 else "")
        lines += [f"## {markdown_text(name)}", "", code_block(table_of_jobs(members), "text"), ""]
        for path, what in drawn.items():
            told = ["Samples from equal seeds:", ""] if path.suffix == ".webp" else []
            lines += [*told, f"![{what}]({path.name})", ""]
        pictures += drawn
    texts = [published(row) for row in rows]
    write_atomically(folder / ROWS_FILE, ("\n".join(texts) + "\n").encode())
    write_text(folder / "README.md", "\n".join(lines))
    write_json(folder / "sweep.json", sweep)
    for path in [*folder.glob("*.png"), *folder.glob("*.webp")]:
        if path not in pictures:  # of jobs that an earlier page showed
            path.unlink()


def write_additivity(found: Path, task: str, folder: Path) -> None:
    """The page of experiments.additivity: its document, picture, and correlations as a table."""
    from experiments.reporting.additivity_page import COLUMNS, explanation, lines_of_correlations

    document = read_json(found / "additivity.json", "delete it and run experiments.additivity again")
    command = f"python -m experiments.additivity task={task}"
    lines = [f"# laptop_diff/additivity, {markdown_text(task)}", "", f"    {command}", ""]
    lines += [markdown(COLUMNS, lines_of_correlations(document)), "", explanation(document), ""]
    if (found / "additivity.png").is_file():
        write_atomically(folder / "additivity.png", (found / "additivity.png").read_bytes())
        lines += ["![additivity](additivity.png)", ""]
    else:
        (folder / "additivity.png").unlink(missing_ok=True)  # of an earlier page
    sweep = {"command": command, "experiment": "laptop_diff/additivity", "task": task, "table": None}
    write_text(folder / "additivity.json", to_json(document, separators=(",", ":")) + "\n")
    write_text(folder / "README.md", "\n".join(lines))
    write_json(folder / "sweep.json", sweep)
