"""Files with captions: prompts, and metadata.csv or metadata.jsonl beside images (as BK-SDM and Hugging Face lay them out).

What a file is tells its ending, in capitals or not: .csv and .tsv have a header, .jsonl an object a line, .json a list of
objects or of texts, .txt a prompt a line. Nothing falls back on another kind.
"""

import csv
import json
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from common.data.splits import tell
from common.errors import InputError
from common.runtime.regular_files import files_below, place_inside, why_no_file

METADATA = ("metadata.csv", "metadata.jsonl")
PROMPT_COLUMNS = ("prompt", "text", "caption")  # of a prompt file, in capitals or not
PROMPT_FILES = (".csv", ".tsv", ".json", ".jsonl", ".txt")


def read_table(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file of PROMPT_FILES, {} for a blank one; InputError for what cannot be read or is damaged.

    A text in a list of texts, and a line of a .txt file, stands for {"prompt": text}.
    """
    readers = {".csv": delimited_rows, ".tsv": delimited_rows, ".json": json_rows, ".jsonl": json_line_rows, ".txt": text_rows}
    reason = why_no_file(path)
    if reason is not None:
        raise InputError(f"{path} cannot be read: it is {reason}.")
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:  # a line break inside of quotes is what it is
            yield from readers[path.suffix.lower()](path, handle)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text ({error}).") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}.") from error


def delimited_rows(path: Path, handle: TextIO) -> Iterator[dict[str, Any]]:
    """The rows below the header of a .csv or .tsv file.

    A .csv quotes as RFC 4180 says. A .tsv may, as spreadsheets write it, or has no quotes, as its registration with IANA says;
    PartiPrompts.tsv has prompts that begin with a quotation mark.
    """
    options: dict[str, Any] = {"strict": True}
    if path.suffix.lower() == ".tsv":
        options["delimiter"] = "\t"
        if not well_quoted(handle):
            options["quoting"] = csv.QUOTE_NONE
    rows = numbered(path, csv.reader(handle, **options))
    header = [name.strip() for name in next(rows, (0, []))[1]]
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{path} has the column {twice!r} {header.count(twice)} times.")
    for line, row in rows:
        if len(row) > len(header):
            found = f"{len(row)} fields, and its header names {len(header)}"
            raise InputError(f"{path} is damaged in line {line}: it has {found}; a text with the separator needs quotes.")
        yield dict(zip(header, row + [""] * (len(header) - len(row)), strict=True)) if row else {}


def numbered(path: Path, rows: Any) -> Iterator[tuple[int, list[str]]]:
    """The rows of a csv.reader, each with the number of the line where it ends; InputError where one cannot be told apart."""
    try:
        for row in rows:
            yield rows.line_num, row
    except csv.Error as error:
        raise InputError(f"{path} is damaged in line {rows.line_num}: {error}.") from error


def well_quoted(handle: TextIO) -> bool:
    """Whether all quotation marks of a .tsv file are of quoted fields; the handle is at its beginning again."""
    try:
        widths = {len(row) for row in csv.reader(handle, delimiter="\t", strict=True) if row}
        return len(widths) <= 1
    except csv.Error:
        return False
    finally:
        handle.seek(0)


def text_rows(path: Path, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """A row a line."""
    return ({PROMPT_COLUMNS[0]: line} for line in lines)


def json_line_rows(path: Path, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The objects of JSON lines; InputError naming the line that holds none."""
    for number, line in enumerate(lines, 1):
        row: Any = {}
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError:
                row = None
        yield row_of(row, f"{path} is damaged in line {number}: each line must hold a JSON object.")


def json_rows(path: Path, handle: TextIO) -> Iterator[dict[str, Any]]:
    """The objects of a JSON list; InputError for another document, naming the keys of a single object."""
    document = json.load(handle)
    if isinstance(document, dict):
        raise InputError(f"{path} holds one object ({listed(document)}): a list of texts, or of objects, is needed.")
    if not isinstance(document, list):
        raise InputError(f"{path} holds a JSON {type(document).__name__}: a list of texts, or of objects, is needed.")
    for number, row in enumerate(document, 1):
        yield row_of(row, f"{path}: entry {number} is neither a text nor an object.")


def row_of(value: Any, otherwise: str) -> dict[str, Any]:
    """An object as a row, a text as a row of one column; InputError(otherwise) for anything else."""
    if isinstance(value, str):
        return {PROMPT_COLUMNS[0]: value}
    if not isinstance(value, dict):
        raise InputError(otherwise)
    return value


def listed(names: Iterable[Any]) -> str:
    """The names of columns for a message, not all of very many."""
    return textwrap.shorten(", ".join(map(str, names)), 200, placeholder=" ...") or "none"


def columns_like(row: dict[str, Any], wanted: Iterable[str]) -> list[str]:
    """The columns of a row that are called as one of the `wanted`, in capitals or not."""
    lower = {name.lower() for name in wanted}
    return [name for name in row if name.strip().lower() in lower]


def caption_of(value: Any) -> str:
    """A caption without white space around it: the first of several, "" for none and for what is no text (NaN, an object).

    Half a surrogate pair, which JSON can hold and no text file or tokenizer can, becomes U+FFFD.
    """
    if isinstance(value, list):
        value = value[0] if value else ""
    text = "" if value is None or value != value or isinstance(value, dict | bytes) else str(value).strip()
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read_metadata(folder: Path, caption_column: str) -> tuple[list[str], list[str]]:
    """File names, relative to `folder`, and captions of every metadata.csv and metadata.jsonl below it, in their order.

    Their columns are file_name, relative to the metadata file, and `caption_column`. InputError for a folder without such a
    file or with two beside each other, for one that lacks a column, and for one that names files outside of `folder`.
    """
    tables, others = files_below(folder, lambda name: name.lower() in METADATA)
    if others:
        tell(folder, [*tables, *others], "skipped, no files", others)
    if not tables:
        wanted = f"file_name,{caption_column}"
        raise InputError(f"{folder} has no {' or '.join(METADATA)}: one with the columns {wanted} must lie beside the images.")
    places = [table.parent for table in tables]
    double = next((table for table in tables if places.count(table.parent) > 1), None)
    if double is not None:
        names = ", ".join(table.name for table in tables if table.parent == double.parent)
        raise InputError(f"{double.parent} holds {names}: one of them is needed.")
    names, captions = [], []
    for table in tables:
        for name, caption in metadata_rows(table, caption_column):
            names.append(str(table.parent.relative_to(folder) / name))
            captions.append(caption)
    inside = [place_inside(folder, name) for name in names]
    outside = [name for name, place in zip(names, inside, strict=True) if place is None]
    if outside:
        told = f"{len(outside)} files outside of {folder} ({listed(outside[:5])})"
        raise InputError(f"The metadata below {folder} names {told}: move them inside, or put links to them there.")
    return inside, captions


def metadata_rows(table: Path, caption_column: str) -> Iterator[tuple[str, str]]:
    """The file name and the caption of each row of a metadata file that is not blank; InputError where a column is missing."""
    for row in read_table(table):
        if not row:
            continue
        cells = []
        for wanted in ("file_name", caption_column):
            found = [wanted] if wanted in row else columns_like(row, [wanted])
            if len(found) != 1:
                told = f"no column {wanted!r}" if not found else f"several columns like {wanted!r}"
                raise InputError(f"{table} has {told}, it has {listed(row)}; task.data.caption_column names one.")
            cells.append(row[found[0]])
        yield "" if cells[0] is None else str(cells[0]), caption_of(cells[1])


def read_prompts(path: Path, setting: str = "evaluation.prompts") -> tuple[list[str], int]:
    """The prompts of a file in its order, and how many empty ones were left out; `setting` names it in messages.

    A table (see read_table) has them in its one column prompt, text or caption; a .txt file has one a line. InputError for a
    file that cannot be read, of another kind, without the column or with several such, or without any prompt.
    """
    kind = path.suffix.lower()
    if kind not in PROMPT_FILES:
        raise InputError(f"{setting}={path}: its ending is none of {', '.join(PROMPT_FILES)}.")
    lines = []
    try:
        table = list(read_table(path))
    except InputError as error:
        raise InputError(f"{setting}: {error}") from error
    for row in table:
        columns = columns_like(row, PROMPT_COLUMNS)
        if row and not columns:
            raise InputError(f"{path} has the columns {listed(row)}, none of {', '.join(PROMPT_COLUMNS)}.")
        if len(columns) > 1:
            raise InputError(f"{path} has several columns of prompts, {' and '.join(columns)}: keep one of them.")
        lines.append(caption_of(row[columns[0]]) if row else "")
    prompts = [line for line in lines if line]
    if not prompts:
        raise InputError(f"{setting}={path} holds no prompt: one a line, or a table with a column text, is needed.")
    return prompts, len(lines) - len(prompts)
