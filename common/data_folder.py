"""What the loaders of data sets share: a folder with index.json or of a person's files, splits, and evenly spaced limits."""

import json
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from common.errors import InputError
from common.files import ROOT

Entry = TypeVar("Entry")
TEST_EVERY = 10


@dataclass(frozen=True)
class Images:
    """Images held in memory: uint8 tensor (count, 3, height, width)."""

    images: torch.Tensor

    def __len__(self) -> int:
        return len(self.images)


def read_index(folder: str | Path, what: str, builder: str, keys: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    """The data folder and its index.json, which must have `keys`.

    `what` and `builder` tell in an InputError what is missing and what makes it.

    `folder`: absolute, or relative to the working directory or the project.
    """
    folder = Path(folder) if Path(folder).is_dir() else ROOT / folder
    if not (folder / "index.json").is_file():
        raise InputError(f"{folder} has no index.json; build the {what} data with {builder}.")
    try:
        document = json.loads((folder / "index.json").read_text())
    except ValueError as error:  # not JSON, or not text
        raise InputError(f"{folder / 'index.json'} is damaged ({error}); build it anew.") from error
    absent = [key for key in keys if not isinstance(document, dict) or key not in document]
    if absent:
        raise InputError(f"{folder / 'index.json'} is damaged (it lacks {', '.join(absent)}); build it anew.")
    return folder, document


def files_of_split(folder: str | Path | None, split: str, endings: Collection[str], what: str) -> tuple[list[Path], int]:
    """A person's files of one split, and how many there are of both: "test" is every tenth by name, "train" the others.

    `what` tells in an InputError what is missing: a folder, a file with one of the `endings`, or the split.
    """
    if folder is None or not Path(folder).is_dir():
        raise InputError(f"task.data.folder={folder} is no folder; give one that holds {what}s.")
    if split not in ("train", "test"):
        raise InputError(f"{folder} holds no {what} of split={split!r}; the splits are 'train' and 'test'.")
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in endings)
    if not files:
        raise InputError(f"{folder} holds no {what} ({', '.join(sorted(endings))}).")
    held_out = set(files[TEST_EVERY - 1 :: TEST_EVERY])
    return [path for path in files if (path in held_out) == (split == "test")], len(files)


def tell(folder: Path, wanted: Sequence[Path], what: str, names: Sequence[str]) -> None:
    """One line on standard error: how many of the wanted files something holds for, and the names of the first five."""
    more = f", and {len(names) - 5} more" if len(names) > 5 else ""
    print(f"{folder}: {len(names)} of {len(wanted)} files {what} ({'; '.join(names[:5])}{more})", file=sys.stderr)


def check_limit(limit: int | None, what: str) -> None:
    """InputError for a limit below one."""
    if limit is not None and limit < 1:
        raise InputError(f"task.data.limit={limit}: at least 1 {what} is needed.")


def evenly_spaced(entries: Sequence[Entry], limit: int | None) -> Sequence[Entry]:
    """At most `limit` of the entries, evenly spaced."""
    if limit is None or limit >= len(entries):
        return entries
    return [entries[index * len(entries) // limit] for index in range(limit)]
