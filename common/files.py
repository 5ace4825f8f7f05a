"""Where the project's own files are, and files and folders that are written whole or not at all."""

import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "teachers"


def user_cache() -> Path:
    """Where what was found out about a person's data files is kept: $BONSAI_CACHE, else ~/.cache/bonsai."""
    return Path(os.environ.get("BONSAI_CACHE") or Path.home() / ".cache" / "bonsai")


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


def write_text(path: Path, text: str) -> None:
    """Writes text as UTF-8, whole or not at all; what no text can hold, such as a byte of a file's name, is spelt out."""
    write_atomically(path, text.encode("utf-8", "backslashreplace"))


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
