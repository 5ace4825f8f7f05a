"""JSON as its standard has it, and as it is read again.

Numbers that JSON lacks are written as protobuf writes them, in the strings "NaN", "Infinity" and "-Infinity", and read as
numbers.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.errors import InputError, first_line

LACKING = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def to_json(document: Any, **options: Any) -> str:
    """The document as JSON, with json.dumps' further options."""
    return json.dumps(json.loads(json.dumps(document), parse_constant=str), allow_nan=False, **options)


def from_json(text: str) -> Any:
    """The inverse of to_json; ValueError for what is no JSON."""
    return lax(json.loads(text))


def lax(value: Any) -> Any:
    """A document with numbers for the strings that stand for them."""
    if isinstance(value, str):
        return LACKING.get(value, value)
    if isinstance(value, dict):
        return {name: lax(item) for name, item in value.items()}
    if isinstance(value, list):
        return [lax(item) for item in value]
    return value


def read_json(path: Path, remedy: str = "", keys: Iterable[str] | None = ()) -> Any:
    """What a file holds: an object with `keys`, or with None anything.

    InputError naming the file, what is wrong with it, and of the project's own files the remedy ("delete it and ...").
    """
    try:
        document = from_json(path.read_text(encoding="utf-8"))
        if keys is not None:
            if not isinstance(document, dict):
                raise ValueError("it is no JSON object")
            missing = [name for name in keys if name not in document]
            if missing:
                raise ValueError(f"it lacks {', '.join(missing)}")
        return document
    except (ValueError, RecursionError) as error:  # no JSON, not text, or not this file's
        told = f"is damaged ({first_line(error)}); {remedy}" if remedy else f"is not JSON: {first_line(error)}"
        raise InputError(f"{path} {told}.") from error
