"""Writes what sweeps of experiments have shown as pages that can be committed: a folder for each, and an index.

    python -m experiments.publish outputs --out experiments/results

<out>/<task>/<experiment>/, of another teacher than the task's own <out>/<task>/<teacher>/<experiment>/, holds README.md
(the command, a paper's table beside ours, all jobs), rows.jsonl (a result row a line), a picture for each metric, and
samples.webp (the teacher's and every student's from equal seeds). Of several sweeps of an experiment the one with most
finished jobs is shown, with the jobs of those that ask for the same of other seeds. <out>/<task>/laptop_diff/additivity/
shows experiments.additivity.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.shown_text import spelt_out
from experiments.reporting.result_pages import shown_command, write_additivity, write_page
from experiments.reporting.rows import page_place, read_rows
from experiments.shared.command_line import error_line, one_line_errors
from experiments.shared.row import Row
from experiments.sweeps.result_index import write_index
from experiments.sweeps.sweep import read_records, read_sweep

OUTER_COMMA = re.compile(r",(?![^\[{(]*[\]})])")  # between values of a sweep, not inside one


@dataclass(frozen=True)
class Shown:
    """What one sweep has found on one task."""

    name: str
    sweep: dict[str, Any]  # as published: its task, and the jobs it was asked for on that task
    rows: list[Row]
    done: int  # jobs whose row is there; several may have the same
    found: dict[str, bool]  # by the folder of each job that was recorded whether its row is there
    rank: tuple[float, ...]  # the largest is published: most rows, then the latest


def found_by(path: Path, outputs: Path) -> Iterator[Shown]:
    """What the sweep described in sweep.json at `path` has found, task by task; nothing where it is of no experiment."""
    sweep = read_sweep(path.parent)
    records = list(read_records(path.parent).values())
    finished = dict.fromkeys(outputs / record["folder"] for record in records if record["error"] is None)
    there = [folder for folder in finished if (folder / "result.json").is_file()]
    if not sweep.get("experiment"):
        return
    if not there:
        print(f"left out: {path.parent} has no finished job", file=sys.stderr)
        return
    rows = {Path(row["path"]).parent: row for row in read_rows(there)}
    tasks = [
        page_place(rows[folder]) if (folder := outputs / record["folder"]) in rows else Path(record["folder"]).parts[0]
        for record in records
    ]
    unknown = max(0, (sweep.get("jobs") or 0) - len(records)) if len(set(tasks)) == 1 else 0  # killed before they ended
    for task in dict.fromkeys(map(page_place, rows.values())):
        own = {folder: row for folder, row in rows.items() if page_place(row) == task}
        about = {
            "command": shown_command(sweep["command"]),
            "experiment": sweep["experiment"],
            "task": task,
            "table": sweep["table"],
            "jobs": tasks.count(task) + unknown,
        }
        done = sum(record["error"] is None and outputs / record["folder"] in own for record in records)
        newest = max((folder / "result.json").stat().st_mtime for folder in own)
        recorded = [record["folder"] for record, place in zip(records, tasks, strict=True) if place == task]
        found = {folder: outputs / folder in own for folder in recorded}
        yield Shown(path.parent.name, about, list(own.values()), done, found, (len(own), newest, path.stat().st_mtime))


def asked(command: str) -> dict[str, set[str]]:
    """What a sweep was asked for: the values of each setting, none of other words."""
    pairs = (word.partition("=") for word in shlex.split(command))
    return {name: set(OUTER_COMMA.split(value)) if equals else set() for name, equals, value in pairs}


def of_other_seeds(command: str, other: str) -> bool:
    """Whether `other` asks for what `command` does, or for some of it, and at most of other seeds."""
    ours, theirs = asked(command), asked(other)
    return ours.keys() | {"seed"} == theirs.keys() | {"seed"} and all(
        values <= ours[name] for name, values in theirs.items() if name != "seed"
    )


def together(sweeps: Sequence[Shown]) -> Shown:
    """Of the sweeps of an experiment that one which is the largest with what those of other seeds have found besides."""
    ordered = sorted(sweeps, key=lambda each: each.rank, reverse=True)
    return max((with_others(shown, ordered) for shown in ordered), key=lambda each: (len(each.rows), each.rank))


def with_others(shown: Shown, sweeps: Sequence[Shown]) -> Shown:
    """A sweep with what those of other seeds have found besides."""
    for other in sweeps:
        known = {row["path"] for row in shown.rows}
        more = [row for row in other.rows if row["path"] not in known]
        if not more or not of_other_seeds(str(shown.sweep["command"]).splitlines()[0], other.sweep["command"]):
            continue
        new = [folder for folder in other.found if folder not in shown.found]
        mended = [folder for folder, there in shown.found.items() if not there and other.found.get(folder)]
        both = {"command": f"{shown.sweep['command']}\n{other.sweep['command']}"}
        both["jobs"] = shown.sweep["jobs"] + len(new) + other.sweep["jobs"] - len(other.found)
        done = shown.done + sum(other.found[folder] for folder in new) + len(mended)
        found = other.found | {folder: there or other.found.get(folder, False) for folder, there in shown.found.items()}
        shown = replace(shown, sweep={**shown.sweep, **both}, rows=[*shown.rows, *more], done=done, found=found)
    return shown


def safe(name: str) -> str:
    """A name as part of a path."""
    return re.sub(r"[^A-Za-z0-9_./-]", "-", name)


@one_line_errors
def publish(arguments: argparse.Namespace) -> None:
    """Publishes the sweeps of experiments below the folder, each task by itself; one that cannot be is told (exit code 1)."""
    outputs, out = arguments.outputs, arguments.out
    if not outputs.is_dir():
        raise InputError(f"{outputs} is no folder; give one that holds jobs, such as outputs.")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a folder.")
    failed = False

    @contextmanager
    def attempt(what: str) -> Iterator[None]:
        """What goes wrong inside is told in one line, and the rest goes on."""
        nonlocal failed
        try:
            yield
        except Exception as error:
            print(spelt_out(f"not published: {what}: {error_line(error)}"), file=sys.stderr)
            failed = True

    found: dict[Path, list[Shown]] = {}
    for path in sorted(outputs.glob("sweeps/*/sweep.json")):
        with attempt(str(path.parent)):
            for shown in found_by(path, outputs):
                folder = out / safe(shown.sweep["task"]) / safe(shown.sweep["experiment"])
                found.setdefault(folder, []).append(shown)
    for folder, sweeps in found.items():
        with attempt(str(folder)):
            shown = together(sweeps)
            write_page(shown.sweep, shown.rows, shown.done, folder)
            print(f"{shown.done} of {shown.sweep['jobs']} jobs of {shown.name}: {folder}")
    documents = sorted(outputs.glob("*/additivity/*/additivity.json"), key=lambda path: path.stat().st_mtime)
    for task, path in {path.parts[-4]: path for path in documents}.items():
        folder = out / safe(task) / "laptop_diff" / "additivity"
        with attempt(str(path)):
            write_additivity(path.parent, task, folder)
            print(f"additivity: {folder}")
    if not (found or documents or failed):
        raise InputError(
            f"No sweep of an experiment with finished jobs below {outputs}: python run.py -m experiment=<name> first."
        )
    write_index(out, attempt)
    if failed:
        sys.exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outputs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    publish(parser.parse_args())


if __name__ == "__main__":
    main()
