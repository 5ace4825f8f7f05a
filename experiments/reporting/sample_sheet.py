"""A sheet of samples of many jobs from equal seeds, as far as their samples are still there."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.shown_text import one_line
from experiments.reporting.rows import labels, student
from experiments.shared.row import Row

FIRST = 8  # samples of each model
LINES = 16  # jobs on a sheet
SAMPLES = "samples from equal seeds"


def first_samples(row: Row) -> dict[str, Any]:
    """The first images of the row's teacher and students, as they lie beside the row; none where they were deleted."""
    from common.diffusion.images import upright
    from common.pruning.plan import PLAN_FILE, Plan
    from experiments.evaluation.samples import shared_samples
    from experiments.shared.job import Job
    from experiments.shared.job_id import configuration_of
    from experiments.shared.tensor_cache import load_tensors

    folder = Path(row["path"]).parent
    if not (folder / "samples").is_dir():
        return {}
    folders = {who: folder / "samples" / who for who in row["models"]}
    known = Plan.load(folder / "plan").teacher if (folder / "plan" / PLAN_FILE).is_file() else None
    job = Job(configuration_of(row["settings"], folder.parents[2]), folder, known)
    if known is not None:
        folders["teacher"] = shared_samples(job, known)
    paths = {who: folder / "000000.safetensors" for who, folder in folders.items()}
    found = {who: load_tensors(path)["images"][:FIRST] for who, path in paths.items() if path.is_file()}
    return {who: upright(images, job.sound) for who, images in found.items()}


def draw_sheet(rows: Sequence[Row], path: Path) -> bool:
    """One line of samples a student, under the teacher's, of LINES jobs at most; whether any samples are left to draw.

    Where they cannot be drawn a line on standard error tells why.
    """
    path.unlink(missing_ok=True)
    try:
        draw_lines(rows[:LINES], path)
    except (InputError, OSError) as error:  # a damaged file; the data set, which has the captions, is not here
        print(one_line(f"{path}: not drawn: {error}"), file=sys.stderr)
    return path.is_file()


def draw_lines(rows: Sequence[Row], path: Path) -> None:
    from experiments.reporting.job_report import draw_samples
    from experiments.shared.job import Job
    from experiments.shared.job_id import configuration_of

    found = [first_samples(row) for row in rows]
    lines = next(({"teacher": images["teacher"]} for images in found if "teacher" in images), {})
    for label, row, images in zip(labels(rows), rows, found, strict=True):
        if student(row) in images:
            name = f"{label} {Path(row['path']).parent.name}" if label in lines else label
            lines[name] = images[student(row)]
    if lines:
        captions = Job(configuration_of(rows[0]["settings"], Path(rows[0]["path"]).parents[3])).prompts.captions
        draw_samples(path, lines, captions[:FIRST])
