"""Result rows as flat tables that a person can query: CSV and Parquet."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.runtime.files import write_atomically, write_text
from experiments.reporting.rows import flat, setting

Record = dict[str, Any]


def flatten(row: Record) -> list[Record]:
    """One flat record per model of a job: what it is, its figures, and how and where they were made.

    Settings, protocol and environment have one column a value; lists, and the plan, are JSON.
    """
    choices = row.get("choices", {})
    settings = row["settings"]
    shared = {
        "task": settings["task"]["name"],
        "method": choices.get("method", ""),
        "setting": setting(row),
        "distill": choices.get("distill", ""),
        "distill_steps": settings["distill"]["steps"],
        "init": settings["init"],
        "seed": settings["seed"],
        "edits": len(row["plan"]),
    }
    made = {"command": row.get("command", ""), "path": row["path"]}
    further = {
        "settings": settings,
        "protocol": row["protocol"],
        "environment": row.get("environment", {}),
        "plan": row["plan"],
    }
    columns = {name: json.dumps(value) if isinstance(value, list) else value for name, value in flat(further).items()}
    return [{**shared, "model": who, **flat(figures), **made, **columns} for who, figures in row["models"].items()]


def union(records: list[Record]) -> list[str]:
    """The columns of all records."""
    return list(dict.fromkeys(name for record in records for name in record))


def write_csv(records: list[Record], path: Path) -> None:
    """All records with the union of their columns, whole or not at all."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, union(records))
    writer.writeheader()
    writer.writerows(records)
    write_text(path, buffer.getvalue())


def of_one_type(values: list[Any]) -> list[Any]:
    """A column of numbers as numbers, one of different types as text, since Parquet has one type a column."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        return [None if value is None else float(value) for value in values]
    if len(kinds) > 1:
        return [None if value is None else str(value) for value in values]
    return values


def write_parquet(records: list[Record], path: Path) -> None:
    """All records with the union of their columns, whole or not at all; InputError where pyarrow is not installed."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError('Parquet needs pyarrow: pip install -c constraints.txt -e ".[parquet]"') from error
    columns = {name: of_one_type([record.get(name) for record in records]) for name in union(records)}
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), buffer)
    write_atomically(path, buffer.getvalue())
