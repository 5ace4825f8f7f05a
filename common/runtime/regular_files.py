"""A person's files: which of what lies below a folder can be read, found out without opening anything."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
MISSING = "missing"


def why_no_file(path: str | Path) -> str | None:
    """In a few words why `path` is no file to read; None where it is one, or a link to one.

    Opening a pipe would wait for ever, and a device may do anything: whoever reads what a person names asks here first.
    """
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return "a link that leads nowhere" if os.path.islink(path) else MISSING
        return "a link to itself" if error.errno == errno.ELOOP else str(error.strerror or error)
    except ValueError:  # a NUL, half a surrogate pair
        return "no name of a file"
    return None if kind == stat.S_IFREG else KINDS.get(kind, "no file")


def read_regular(path: Path) -> bytes:
    """The bytes of a file; OSError for what is none."""
    reason = why_no_file(path)
    if reason is not None:
        raise OSError(f"it is {reason}")
    return path.read_bytes()


def files_below(folder: str | Path, wanted: Callable[[str], bool]) -> tuple[list[Path], list[str]]:
    """The files below a folder whose names are `wanted`, sorted, and what else bears such a name or could not be looked into.

    The latter as text for a message: "part/loop.png: a link to itself". Links to folders are not followed, and what is hidden
    does not count, as in common.runtime.content.
    """
    found: list[Path] = []
    others: list[str] = []

    def refused(error: OSError) -> None:
        others.append(f"{os.path.relpath(error.filename, folder)}: {error.strerror}")

    for place, folders, files in os.walk(folder, onerror=refused):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in filter(wanted, (*folders, *(name for name in files if not name.startswith(".")))):
            path = Path(place, name)
            reason = why_no_file(path)
            if reason is None:
                found.append(path)
            else:
                others.append(f"{path.relative_to(folder)}: {reason}")
    return sorted(found), sorted(others)


def place_inside(folder: Path, name: str) -> str | None:
    """A file's name below `folder`, of a name relative to it or absolute; None where that leads out of the folder.

    By the name alone: a link inside the folder may lead anywhere, for its owner has put it there.
    """
    below = os.path.relpath(os.path.join(folder, name), folder)
    return None if below == os.pardir or below.startswith(os.pardir + os.sep) else below
