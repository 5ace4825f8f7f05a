"""Puts the result rows of many jobs into one table.

python -m experiments.collect outputs                    every result.json below the folder, as a table
python -m experiments.collect outputs --csv rows.csv     and as CSV, one line per job and model
"""

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import write_atomically
from experiments.command_line import one_line_errors

KNOBS = ("variant", "k", "ratio", "sparsity")  # what a sweep of a method is usually over
PARTS = ("settings", "models", "plan", "protocol")


def read_rows(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """The result rows below the folders; a broken one is named on standard error and left out.

    InputError when a folder does not exist, or when there is no row at all.
    """
    folders = list(folders)
    rows = []
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder; give one that holds jobs, such as outputs.")
        for path in sorted(folder.rglob("result.json")):
            try:
                row = json.loads(path.read_text())
                missing = [name for name in PARTS if name not in row]
                if missing:
                    raise ValueError(f"it lacks {', '.join(missing)}")
                rows.append({**row, "path": str(path)})
            except (ValueError, TypeError) as error:  # JSON's own error is a ValueError
                print(f"left out: {path} is no whole row: {error}", file=sys.stderr)
    if not rows:
        raise InputError(f"No result.json below {', '.join(map(str, folders))}: run a job first.")
    return rows


def setting(row: dict[str, Any]) -> str:
    """The value of the method's own knob, such as "0.5" or "base"."""
    method = row["settings"]["method"]
    return next((str(method[name]) for name in KNOBS if name in method), "")


def distance_name(row: dict[str, Any]) -> str:
    """The name of the row's Fréchet distance, such as "fd_effnet"."""
    return next(name for name in row["models"]["teacher"] if name.startswith(("fd_", "fad_")))


def student(row: dict[str, Any]) -> str:
    """The last of the row's models: "distilled", or "pruned" where nothing was trained."""
    return list(row["models"])[-1]


def flatten(row: dict[str, Any]) -> list[dict[str, Any]]:
    """One flat record per model of a job, for a table that a person can query."""
    choices = row.get("choices", {})
    shared = {
        "task": row["settings"]["task"]["name"],
        "method": choices.get("method", ""),
        "setting": setting(row),
        "distill": choices.get("distill", ""),
        "distill_steps": row["settings"]["distill"]["steps"],
        "init": row["settings"]["init"],
        "seed": row["settings"]["seed"],
        "edits": len(row["plan"]),
    }
    made = {"command": row.get("command", ""), "path": row["path"]}
    return [{**shared, "model": who, **flat(figures), **made} for who, figures in row["models"].items()]


def flat(figures: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested figures side by side: {"latency": {"ratio": 1}} becomes {"latency_ratio": 1}."""
    found: dict[str, Any] = {}
    for name, value in figures.items():
        found |= flat(value, f"{prefix}{name}_") if isinstance(value, dict) else {prefix + name: value}
    return found


def write_csv(records: list[dict[str, Any]], path: Path) -> None:
    """All records with the union of their columns, whole or not at all."""
    columns = list(dict.fromkeys(name for record in records for name in record))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns)
    writer.writeheader()
    writer.writerows(records)
    write_atomically(path, buffer.getvalue().encode())


def group_name(row: dict[str, Any]) -> str:
    """What rows of one table have in common: task, teacher and protocol."""
    settings, protocol = row["settings"], row["protocol"]
    what = f"{settings['task']['name']}, teacher {settings['teacher']['path']}, seed {settings['seed']}"
    return f"{what}, {protocol['images']} images of {protocol['steps']} steps"


def changed_settings(rows: list[dict[str, Any]]) -> list[str]:
    """For each row the method's settings that differ among the rows of the same method, its own knob left out."""
    found = []
    for row in rows:
        method = row["settings"]["method"]
        others = [other["settings"]["method"] for other in rows if other["settings"]["method"].keys() == method.keys()]
        names = [name for name in method if name not in KNOBS and any(other[name] != method[name] for other in others)]
        words = [method[name] if isinstance(method[name], str) else f"{name}={method[name]}" for name in names]
        found.append(" ".join([setting(row), *words]))
    return found


def print_rows(rows: list[dict[str, Any]]) -> None:
    """A table for each task, teacher and protocol; one line a job, within 80 columns: before → after distillation."""
    from rich.console import Console

    groups: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (setting(row), row.get("choices", {}).get("method", ""))):
        groups.setdefault(group_name(row), []).append(row)
    console = Console(width=80)
    for name, members in groups.items():
        teacher = members[0]["models"]["teacher"]
        distance = next((key for key in teacher if key.startswith("fd_")), "")
        console.print(table_of(members, distance))
        retrieval = f", retrieval {100 * teacher['caption_retrieval']:.0f} %" if "caption_retrieval" in teacher else ""
        console.print(
            f"\n{len(members)} jobs; {name}; the teacher: FD {teacher.get(distance, float('nan')):.0f}{retrieval}. "
            "left: parameters of the student; before → after distillation.\n",
            style="dim",
            highlight=False,
        )


def table_of(rows: list[dict[str, Any]], distance: str) -> Any:
    """The rich table of one group of rows; `distance`: the name of its Fréchet distance."""
    from rich.table import Table

    def arrow(models: dict[str, Any], name: str, form: str, factor: float = 1.0) -> str:
        values = [models[who].get(name) for who in ("pruned", "distilled") if who in models]
        return "→".join(form.format(factor * value) for value in values if value is not None)

    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    for title in ("method", "setting", "distill"):
        table.add_column(title, overflow="fold")
    for title in ("left", "time", "FD", "retrieval", "MSE to t."):
        table.add_column(title, justify="right", no_wrap=True)
    for row, settings in zip(rows, changed_settings(rows), strict=True):
        models, choices = row["models"], row.get("choices", {})
        last = models["distilled" if "distilled" in models else "pruned"]
        table.add_row(
            choices.get("method", ""),
            settings,
            f"{choices.get('distill', '')} {row['settings']['distill']['steps']}",
            f"{100 * last['parameters'] / models['teacher']['parameters']:.0f}%",
            f"{last['latency']['ratio']:.2f}x",
            arrow(models, distance, "{:.0f}"),
            arrow(models, "caption_retrieval", "{:.0f}%", 100),
            arrow(models, "latent_mse", "{:.3f}"),
        )
    return table


@one_line_errors
def collect(arguments: argparse.Namespace) -> None:
    """Prints the table of all rows, and writes them as CSV where that is asked for."""
    rows = read_rows(arguments.folders)
    if arguments.csv is not None:
        write_csv([record for row in rows for record in flatten(row)], arguments.csv)
    print_rows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--csv", type=Path)
    collect(parser.parse_args())


if __name__ == "__main__":
    main()
