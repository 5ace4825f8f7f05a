"""Writes what sweeps of experiments have shown as pages that can be committed: a folder for each, and an index.

    python -m experiments.publish outputs --out experiments/results

<out>/<experiment>[-<task>]/ holds README.md (the command, a paper's table beside ours, all jobs), rows.jsonl (a result row a
line), a picture for each metric, and samples.webp (the teacher's and every student's from equal seeds).
"""

import argparse
import io
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.files import write_atomically
from experiments.command_line import one_line_errors
from experiments.paper_table import markdown, note, paper_table
from experiments.rows import ROWS_FILE, Row, groups_of, labels, read_rows

FIRST = 8  # samples of each model
WIDTH = 64  # pixels of a sample on the sheet


def folder_name(sweep: dict[str, Any]) -> str:
    """The experiment, with the task where the command asked for one."""
    task = next((word for word in shlex.split(sweep["command"]) if word.startswith("task=")), None)
    return sweep["experiment"] + (f"-{sweep['task']}" if task else "")


def shown_command(sweep: dict[str, Any]) -> str:
    """The command without where it wrote."""
    return shlex.join(word for word in shlex.split(sweep["command"]) if not word.startswith(("outputs=", "logging=")))


def table_of_jobs(rows: Sequence[Row]) -> str:
    """The table of experiments.collect, as text."""
    from rich.console import Console

    from experiments.collect import table_of
    from experiments.rows import distance_name

    console = Console(width=100, file=io.StringIO())
    console.print(table_of(list(rows), distance_name(rows[0])))
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def first_samples(row: Row) -> dict[str, Any]:
    """The first images of the row's teacher and students, as they lie beside the row; none where they were deleted."""
    from omegaconf import OmegaConf

    from common.pictures import upright
    from common.plans import Plan
    from experiments.caches import load_tensors
    from experiments.evaluate import shared_samples

    job = Path(row["path"]).parent
    cfg = OmegaConf.create(row["settings"])
    folders = {who: job / "samples" / who for who in row["models"]}
    folders["teacher"] = shared_samples(cfg, Plan.load(job / "plan").teacher, job.parents[2] / "cache")
    paths = {who: folder / "000000.safetensors" for who, folder in folders.items()}
    found = {who: load_tensors(path)["images"][:FIRST] for who, path in paths.items() if path.is_file()}
    return {who: upright(images, cfg.task.sound) for who, images in found.items()}


def draw_sheet(rows: Sequence[Row], path: Path) -> None:
    """One line of samples a student, under the teacher's."""
    from omegaconf import OmegaConf

    from experiments.evaluate import evaluation_prompts
    from experiments.job_report import draw_samples
    from experiments.rows import student

    lines: dict[str, Any] = {}
    for label, row in zip(labels(rows), rows, strict=True):
        images = first_samples(row)
        lines |= {name: images[who] for name, who in (("teacher", "teacher"), (label, student(row))) if who in images}
    if lines:
        captions = evaluation_prompts(OmegaConf.create(rows[0]["settings"]))[0]
        draw_samples(path, lines, captions[:FIRST])


def publish_sweep(sweep: dict[str, Any], rows: Sequence[Row], folder: Path) -> None:
    """Writes the pages of one sweep."""
    from experiments.curves import draw_curves
    from experiments.report import PNG_METRICS
    from experiments.rows import metric_names

    table, lines = sweep["table"], [f"# {sweep['experiment']}", "", f"    {shown_command(sweep)}", ""]
    if table is not None:
        lines += [f"## {table['title']}", "", markdown(*paper_table(rows, table)), "", note(table), ""]
    groups = groups_of(rows)
    for number, (name, members) in enumerate(groups.items(), 1):
        prefix = f"{number}-" if len(groups) > 1 else ""
        lines += [f"## {name}", "", "```text", table_of_jobs(members), "```", ""]
        for metric in filter(PNG_METRICS.match, metric_names(members)):
            draw_curves(members, folder / f"{prefix}{metric}.png", metric)
            lines += [f"![{metric}]({prefix}{metric}.png)", ""]
        draw_sheet(members, folder / f"{prefix}samples.webp")
        if (folder / f"{prefix}samples.webp").is_file():
            lines += [f"Samples from equal seeds:\n\n![samples]({prefix}samples.webp)", ""]
    texts = [json.dumps({key: value for key, value in row.items() if key != "path"}) for row in rows]
    write_atomically(folder / ROWS_FILE, ("\n".join(texts) + "\n").encode())
    write_atomically(folder / "README.md", "\n".join(lines).encode())
    write_atomically(folder / "sweep.json", (json.dumps({**sweep, "command": shown_command(sweep)}, indent=1) + "\n").encode())


def write_index(folder: Path) -> None:
    """README.md of all that is published, with the command of each."""
    lines = [
        "# Results",
        "",
        "Each claim of the papers with what was measured: [claims.md](claims.md). The tables and figures:",
        "",
    ]
    for path in sorted(folder.rglob("sweep.json")):
        sweep, name = json.loads(path.read_text()), path.parent.relative_to(folder)
        title = (sweep["table"] or {}).get("title", "")
        lines.append(f"- [{name}]({name}/README.md){f': {title}' if title else ''}  \n  `{sweep['command']}`")
    write_atomically(folder / "README.md", ("\n".join(lines) + "\n").encode())


@one_line_errors
def publish(arguments: argparse.Namespace) -> None:
    """Publishes the finished jobs of every sweep of an experiment below the folder, the last one where several share a name."""
    from experiments.sweeps import read_records

    for path in sorted(arguments.outputs.glob("sweeps/*/sweep.json"), key=lambda path: path.stat().st_mtime):
        sweep = json.loads(path.read_text())
        done = [
            arguments.outputs / record["folder"] for record in read_records(path.parent).values() if record["error"] is None
        ]
        if sweep.get("experiment") and done:
            name = re.sub(r"[^A-Za-z0-9_./-]", "-", folder_name(sweep))
            publish_sweep(sweep, read_rows(dict.fromkeys(done)), arguments.out / name)
            print(f"{len(done)} jobs: {arguments.out / name}")
    write_index(arguments.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outputs", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    publish(parser.parse_args())


if __name__ == "__main__":
    main()
