"""Files with captions: prompts, and metadata.csv or metadata.jsonl beside images (as BK-SDM and Hugging Face lay them out)."""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from common.errors import InputError

METADATA = ("metadata.csv", "metadata.jsonl")
CAPTION_COLUMNS = ("text", "caption", "prompt")  # of a prompt file, in this order


def read_table(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a .csv file with a header or of a .jsonl file; InputError for what is damaged."""
    try:
        with open(path, encoding="utf-8-sig", newline="" if path.suffix == ".csv" else None) as handle:
            yield from csv.DictReader(handle) if path.suffix == ".csv" else json_rows(path, handle)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, csv.Error) as error:  # not text, or a damaged table
        raise InputError(f"{path} is damaged: {error}.") from error


def json_rows(path: Path, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The objects of JSON lines; InputError naming the line that holds none."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise InputError(f"{path} is damaged in line {number}: each line must hold a JSON object.")
            yield row


def caption_of(value: Any) -> str:
    """A caption without white space around it: the first of several, "" for none."""
    if isinstance(value, list):
        value = value[0] if value else ""
    return "" if value is None else str(value).strip()


def read_metadata(folder: Path, caption_column: str) -> tuple[list[str], list[str]]:
    """File names, relative to `folder`, and captions of every metadata.csv and metadata.jsonl below it, in their order.

    Their columns are file_name, relative to the metadata file, and `caption_column`. InputError for a folder without such a
    file, and for one that lacks a column.
    """
    tables = sorted(path for name in METADATA for path in folder.rglob(name))
    if not tables:
        wanted = f"file_name,{caption_column}"
        raise InputError(f"{folder} has no {' or '.join(METADATA)}: one with the columns {wanted} must lie beside the images.")
    names, captions = [], []
    for table in tables:
        below = table.parent.relative_to(folder)
        for row in read_table(table):
            absent = [column for column in ("file_name", caption_column) if column not in row]
            if absent:
                found = ", ".join(map(str, row))
                raise InputError(f"{table} has no column {absent[0]!r}, it has {found}; task.data.caption_column names one.")
            names.append(str(below / str(row["file_name"])))
            captions.append(caption_of(row[caption_column]))
    return names, captions


def read_prompts(path: Path) -> tuple[list[str], int]:
    """The prompts of a file in its order, and how many empty ones were left out.

    A .csv or .jsonl file with a column text, caption or prompt; any other is text with one prompt a line. InputError for a
    file that cannot be read, that lacks the column, or that has no prompt.
    """
    if path.suffix in (".csv", ".jsonl"):
        lines = []
        for row in read_table(path):
            column = next((name for name in CAPTION_COLUMNS if name in row), None)
            if column is None:
                raise InputError(f"{path} has the columns {', '.join(map(str, row))}, none of {', '.join(CAPTION_COLUMNS)}.")
            lines.append(caption_of(row[column]))
    else:
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")]
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"evaluation.prompts={path} cannot be read as text: {reason}.") from error
    prompts = [line for line in lines if line]
    if not prompts:
        raise InputError(f"evaluation.prompts={path} holds no prompt: one a line, or a table with a column text, is needed.")
    return prompts, len(lines) - len(prompts)
