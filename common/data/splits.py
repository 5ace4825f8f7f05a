"""What the loaders of data sets share: a folder with index.json or of a person's files, splits, and evenly spaced limits."""

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from common.errors import InputError
from common.runtime.content import check_stamp, content_name, file_digests, located, stamp_of, while_unchanged
from common.runtime.processes import is_first
from common.runtime.regular_files import files_below, read_regular
from common.runtime.strict_json import read_json
from common.shown_text import spelt_out

Entry = TypeVar("Entry")
TEST_EVERY = 10


@dataclass(frozen=True)
class Images:
    """Images: uint8 (count, 3, height, width), a tensor or a common.data.lazy_images.LazyImages."""

    images: Any

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class CaptionedImages:
    """Images with one caption each.

    images: as in Images; captions: one string per image; names: the caption without the style, shared by the drawings of
    one thing; categories: the group of each image ("Flags", "Food & Drink", ...). Both are None where the data has none.
    """

    images: Any
    captions: Sequence[str]
    names: Sequence[str] | None = None
    categories: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.captions)


class Files:
    """Files below a folder, to be read by number (common.data.lazy_images.Source)."""

    def __init__(self, folder: str | Path, names: Sequence[str]):
        self.place, self.names = str(folder), names
        self.stamps = [stamp_of(Path(folder, name)) for name in names]
        self.content = content_name(list(zip(names, file_digests(Path(folder), names), strict=True)))

    def __len__(self) -> int:
        return len(self.names)

    def name(self, row: int) -> str:
        return self.names[row]

    def read(self, row: int) -> bytes:
        path = Path(self.place, self.names[row])
        check_stamp(path, self.stamps[row])
        return read_regular(path)


def read_split_index(folder: str | Path, what: str, builder: str, keys: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    """The data folder and its index.json, which must have `keys`.

    `what` and `builder` tell in an InputError what is missing and what makes it.

    `folder`: absolute, or relative to the working directory or the project.
    """
    folder = located(folder) or Path(folder)
    if not (folder / "index.json").is_file():
        raise InputError(f"{folder} has no index.json; build the {what} data with {builder}.")
    return folder, read_json(folder / "index.json", "build it anew", keys)


@while_unchanged  # a job asks for its data several times
def read_picture(path: Path, mode: str, what: str, builder: str) -> np.ndarray:
    """Pixels (height, width) of mode "L" or (height, width, 3) of "RGB"; `what` and `builder` as in read_split_index."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert(mode))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error}); build the {what} data with {builder}.") from error


def files_of_split(folder: str | Path | None, split: str, endings: Collection[str], what: str) -> tuple[list[Path], int]:
    """A person's files of one split, and how many there are of both: "test" is every tenth by name, "train" the others.

    `what` tells in an InputError what is missing: a folder, a file with one of the `endings`, or the split. What bears such an
    ending and is no file is told in one line on standard error.
    """
    check_folder(folder, split, what)
    files, others = files_below(folder, lambda name: Path(name).suffix.lower() in endings)
    if others:
        tell(folder, [*files, *others], "skipped, no files", others)
    if not files:
        raise InputError(f"{folder} holds no {what} ({', '.join(sorted(endings))}).")
    held_out = set(files[TEST_EVERY - 1 :: TEST_EVERY])
    return [path for path in files if (path in held_out) == (split == "test")], len(files)


def check_folder(folder: str | Path | None, split: str, what: str, setting: str = "folder") -> None:
    """InputError unless task.data.<setting> is a folder and `split` one of the two; `what` it should hold."""
    if folder is None or not Path(folder).is_dir():
        raise InputError(f"task.data.{setting}={folder} is no folder; give one that holds {what}s.")
    if split not in ("train", "test"):
        raise InputError(f"{folder} holds no {what} of split={split!r}; the splits are 'train' and 'test'.")


def folder_of_split(folder: str | Path | None, test_folder: str | Path | None, split: str, what: str) -> tuple[Path, bool]:
    """Where a split is, and whether that is `folder`: for "test" it is `test_folder`, where one is given.

    InputError as check_folder tells it.
    """
    apart = test_folder is not None and split == "test"
    where = test_folder if apart else folder
    check_folder(where, split, what, "test_folder" if apart else "folder")
    return Path(where), not apart


def split_rows(count: int, split: str) -> np.ndarray:
    """The row numbers of a split: "test" is every tenth of `count`, "train" the others."""
    rows = np.arange(count)
    return rows[(rows % TEST_EVERY == TEST_EVERY - 1) == (split == "test")]


def tell(folder: str | Path, wanted: Sequence[Any], what: str, names: Sequence[str], things: str = "files") -> None:
    """One line on standard error: how many of the wanted files something holds for, and the names of the first five."""
    if not is_first():
        return
    more = f", and {len(names) - 5} more" if len(names) > 5 else ""
    told = f"{folder}: {len(names)} of {len(wanted)} {things} {what} ({'; '.join(names[:5])}{more})"
    print(spelt_out(told), file=sys.stderr)


def check_count(folder: str | Path, count: int, expected: int | None, what: str) -> None:
    """One line on standard error when a published data set does not have the size that it is known to have."""
    if expected is not None and count != expected:
        print(f"{folder}: {count:,} {what}s, and {expected:,} are expected of this data set", file=sys.stderr)


def evenly_spaced(entries: Sequence[Entry], limit: int | None) -> Sequence[Entry]:
    """At most `limit` of the entries, evenly spaced."""
    if limit is None or limit >= len(entries):
        return entries
    return [entries[index * len(entries) // limit] for index in range(limit)]
