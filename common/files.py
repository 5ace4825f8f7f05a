"""Where the project's own files are, and files and folders that are written whole or not at all."""

import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "teachers"


def user_cache() -> Path:
    """Where what was found out about a person's data files is kept: $BONSAI_CACHE, else ~/.cache/bonsai."""
    return Path(os.environ.get("BONSAI_CACHE") or Path.home() / ".cache" / "bonsai")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object; InputError when it does not."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not text
        raise InputError(f"{path} is not JSON: {error}.") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} holds no JSON object.")
    return document


def write_atomically(path: Path, content: bytes) -> None:
    """Writes to a temporary name in the same folder, flushes to disk and renames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.partial")
    try:
        with open(scratch, "wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def write_json(path: Path, document: Any) -> None:
    """Writes indented JSON with a final newline, whole or not at all."""
    write_atomically(path, (json.dumps(document, indent=1) + "\n").encode())


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `folder` when the block ends without an error, and else is removed."""
    scratch = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
