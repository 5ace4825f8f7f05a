"""The index of published result pages, by task, with the command of each."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from common.runtime.files import write_text
from common.shown_text import code_span, markdown_text
from experiments.sweeps.sweep import read_sweep

FAULTS = "faults.md"


def index_lines(path: Path, folder: Path) -> list[str]:
    """The index's line about the page beside sweep.json at `path`."""
    sweep, name = read_sweep(path.parent), path.parent.relative_to(folder)
    title = (sweep["table"] or {}).get("title")
    _, other, teacher = sweep["task"].partition("/")  # of another teacher than the task's own (reporting.rows.page_place)
    link = f"[{markdown_text(f'{teacher}{other}' + sweep['experiment'])}]({name}/README.md)"
    commands = "  \n  ".join(map(code_span, sweep["command"].splitlines()))
    return [f"- {link}{f': {markdown_text(title)}' if title else ''}  \n  {commands}"]


def fault_lines(folder: Path) -> list[str]:
    """The link to faults.md, where a person has noted which of the pages are of faults that are mended since."""
    if not (folder / FAULTS).is_file():
        return []
    return [f"Some figures are of faults that are mended, and will be measured anew: [{FAULTS}]({FAULTS}).", ""]


def write_index(folder: Path, attempt: Callable[[str], Any] = nullcontext) -> None:
    """README.md of all that is published, by task, with the command of each; `attempt` is entered for every page of it."""
    tasks: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("sweep.json")):
        with attempt(str(path)):
            tasks.setdefault(path.relative_to(folder).parts[0], []).extend(index_lines(path, folder))
    lines = ["# Results", "", *fault_lines(folder)]
    for page in sorted(folder.rglob("claims.md")):
        name = page.relative_to(folder)
        of_task = "" if name.parent == Path() else f", {name.parent}"
        lines += [f"Each claim of the papers with what was measured{of_task}: [claims.md]({name}).", ""]
    for task, pages in tasks.items():
        lines += [f"## {task}", "", *pages, ""]
    write_text(folder / "README.md", "\n".join(lines))
