"""Where the project's own files are, and files and folders that are written whole or not at all."""

import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from common.errors import InputError
from common.runtime.strict_json import to_json

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "teachers"


def user_cache() -> Path:
    """Where what was found out about a person's data files is kept: $BONSAI_CACHE, else ~/.cache/bonsai."""
    return Path(os.environ.get("BONSAI_CACHE") or Path.home() / ".cache" / "bonsai")


def remembered(path: Path) -> dict[str, Any] | None:
    """What `remember` has written to a file of user_cache(); None where nothing is, or nothing whole."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return document if isinstance(document, dict) else None
    except (OSError, ValueError):
        return None


def remember(path: Path, document: dict[Any, Any]) -> None:
    """Writes what was found out to a file of user_cache(); with a full or read-only home it is found out again next time."""
    with suppress(OSError):
        write_json(path, document)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write, under a temporary name in the same folder.

    When the block ends without an error it is flushed to disk and takes the place of `path`, and else it is removed. What the
    system refuses (a full disk, say) is an OSError that names `path`, however the block's libraries have put it.
    """
    scratch = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.partial")
    with refusals_name(path, scratch):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(scratch, "wb") as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(scratch, path)
        finally:
            with suppress(OSError):
                scratch.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes `path` whole or not at all."""
    with whole_file(path) as handle:
        handle.write(content)


def write_text(path: Path, text: str) -> None:
    """Writes text as UTF-8, whole or not at all; what no text can hold, such as a byte of a file's name, is spelt out."""
    write_atomically(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, document: Any) -> None:
    """Writes indented JSON with a final newline, whole or not at all."""
    write_atomically(path, (to_json(document, indent=1) + "\n").encode())


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `folder` when the block ends without an error, and else is removed."""
    scratch = folder.with_name(f".{folder.name}.partial")
    with refusals_name(folder, scratch):
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        try:
            yield scratch
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        readable_as_others(scratch)
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)


def readable_as_others(folder: Path) -> None:
    """Gives the files in a folder the permissions that new files have: safetensors gives its own to the owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(path.stat().st_mode | 0o666 & ~mask)


def check_writable(folder: Path, setting: str) -> None:
    """InputError where nothing can be written to the folder, which is made; `setting` names what a person gives it by."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}): give another {setting}=<folder>.") from error


def check_room(folder: Path, size: int, what: str) -> None:
    """InputError where the disk of `folder`, which may not be there yet, has no room for `size` bytes of `what`."""
    place = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    free = shutil.disk_usage(place).free
    if free < size:
        raise InputError(
            f"{place} has {free / 2**30:.1f} GiB left, and {what} take {size / 2**30:.1f} GiB: give another outputs."
        )


@contextmanager
def refusals_name(path: Path, scratch: Path) -> Iterator[None]:
    """What the system refuses inside, of `scratch` or without saying of what, is raised as an OSError that names `path`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        # torch.save tells of the state of its archive while it handles what the file has raised
        cause = error.__context__ if isinstance(error, RuntimeError) and refusal(error) is None else error
        number, named = refusal(cause), getattr(cause, "filename", None)
        if number is None or not (named is None or str(named).startswith(str(scratch))):
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def refusal(error: BaseException | None) -> int | None:
    """The number of the system's refusal that an error stands for, if any; safetensors says it in words alone."""
    if isinstance(error, OSError):
        return error.errno
    told = re.search(r"\(os error (\d+)\)", str(error))
    return int(told.group(1)) if told else None
