"""What tells files from others of the same name: a digest of the whole content of each, computed once and remembered.

A digest is remembered in common.runtime.files.user_cache() for as long as path, size, times of modification and of change, and
inode of its file stay as they are. The system's clock of files is coarse: what was written less than SETTLED before it was read
might be written again without a trace, and is read again the next time.

Files of the Hugging Face hub's cache are links to blobs that are named for the SHA-256 of what they hold: that name is taken.
"""

import errno
import functools
import hashlib
import inspect
import json
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from common.errors import InputError
from common.runtime.files import ROOT, remember, remembered, user_cache
from common.runtime.locks import locked
from common.runtime.regular_files import MISSING, why_no_file
from common.runtime.threads import in_threads

SETTLED = 2 * 10**9  # nanoseconds
LONG = 2**30  # bytes: reading more than this shows a progress bar
NOTES = (".md",)  # beside weights and data, and no part of them
PATHS = (
    "folder",
    "test_folder",
    "path",
    "config",
    "prompts",
    "vae",
    "lora",
    "weights",
    "reference",
    "model",
    "processor",
)  # settings that name files
BLOB = re.compile(r"[0-9a-f]{64}")

Result = TypeVar("Result")
Stamp = tuple[int, int, int, int]
"""Size, times of modification and of change in nanoseconds, inode."""


def content_name(*parts: Any) -> str:
    """A short name for what something depends on: numbers, texts, lists and mappings, whose order does not matter."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode(errors="surrogateescape")).hexdigest()[:16]


def located(path: str | Path) -> Path | None:
    """The file or folder that a setting names: absolute, in the home folder (~), or relative to the working directory or the
    project; None where there is none.
    """
    if path == "":
        return None
    try:
        given = Path(path).expanduser()
        return next((place for place in (given, ROOT / given) if place.exists()), None)
    except (OSError, RuntimeError, ValueError):  # a name too long, no such home, a null character
        return None


def path_content(path: Path, left_out: Collection[str] = NOTES, without: Path | None = None) -> str:
    """The content of a file with its ending, which says how it is read, or of all files below a folder with their names in it.

    Where they lie does not matter.

    left_out: endings of files that do not count. without: a folder inside that does not count either.
    """
    if not path.is_dir():
        return content_name(path.suffix.lower(), file_digests(path.parent, [path.name]))
    names = names_below(path, left_out, without)
    return content_name(list(zip(names, file_digests(path, names), strict=True)))


def names_below(folder: Path, left_out: Collection[str] = NOTES, without: Path | None = None) -> list[str]:
    """The files at any depth below a folder, by their names relative to it, sorted; links are followed, into loops but once.

    Hidden files and folders do not count, nor what path_content leaves out.
    """
    apart = None if without is None else os.path.realpath(without)

    def visit(place: str, prefix: str, above: tuple[str, ...]) -> Iterator[str]:
        real = os.path.realpath(place)
        if real in above or real == apart:
            return
        with suppress(PermissionError), os.scandir(place) as entries:
            for entry in entries:
                with suppress(OSError):  # a link to itself
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        yield from visit(entry.path, f"{prefix}{entry.name}/", (*above, real))
                    elif entry.is_file() and not entry.name.lower().endswith(tuple(left_out)):
                        yield prefix + entry.name

    return sorted(visit(str(folder), "", ()))


def file_digests(folder: Path, names: Sequence[str]) -> list[str]:
    """The SHA-256 of each file's whole content, half of it, for files by their names relative to `folder`.

    Of processes that ask for the same long work at the same time one does it. A file that cannot be read has the reason for
    its digest: its reader will tell. InputError for one that is not there.
    """
    folder = Path(os.path.abspath(folder))
    kept = user_cache() / "digests" / f"{content_name(str(folder))}.json"
    digests = _known(folder, names, remembered(kept) or {})
    missing = [name for name, digest in zip(names, digests, strict=True) if digest is None]
    if missing:
        long = sum(_size(folder / name) for name in missing) > LONG
        with _alone(kept, f"the files of {folder} are being read", long):
            known = remembered(kept) or {}
            digests = _known(folder, names, known)
            missing = [name for name, digest in zip(names, digests, strict=True) if digest is None]
            fresh: dict[str, list[Any]] = {}
            found: dict[str, str] = {}
            try:
                for name, (stamp, digest) in zip(missing, _read(folder, missing, long), strict=True):
                    found[name] = digest
                    if stamp is not None:
                        fresh[name] = [*stamp, digest]
            finally:  # also of what was interrupted
                if fresh:
                    remember(kept, known | fresh)
        digests = [found.get(name, digest) for name, digest in zip(names, digests, strict=True)]
    return digests


def path_stamp(path: Path) -> str:
    """Changes with a file, or with the files below a folder, as far as their folders tell: nothing is read."""
    names = names_below(path, ()) if path.is_dir() else [""]
    return content_name([(name, stamp_of(path / name)) for name in names])


def while_unchanged(load: Callable[..., Result]) -> Callable[..., Result]:
    """`load` with its last few results kept for equal arguments, while the files that those of PATHS name stay as they are."""
    signature = inspect.signature(load)

    @functools.lru_cache(maxsize=8)
    def kept(_stamps: tuple[str, ...], *arguments: Any, **settings: Any) -> Result:
        return load(*arguments, **settings)

    @functools.wraps(load)
    def current(*arguments: Any, **settings: Any) -> Result:
        given = signature.bind(*arguments, **settings).arguments
        places = [located(given[name]) for name in PATHS if isinstance(given.get(name), str | Path)]
        return kept(tuple(path_stamp(place) for place in places if place is not None), *arguments, **settings)

    current.cache_clear = kept.cache_clear
    return current


def stamp_of(path: str | Path) -> int:
    """A number that changes when a file does, as far as its folder tells; 0 of one that is not there or cannot be reached."""
    try:
        return hash(_stamp(os.stat(path)))
    except OSError:
        return 0


def check_stamp(path: Path, stamp: int) -> None:
    """OSError when a file has changed since it had this stamp."""
    if stamp_of(path) != stamp:
        raise OSError(errno.ESTALE, "it has changed since this command began")


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _known(folder: Path, names: Iterable[str], found: dict[str, list[Any]]) -> list[str | None]:
    """The digests that need no reading; None for the others."""

    def digest(name: str) -> str | None:
        path = os.path.join(folder, name)
        if os.path.islink(path):
            *_, parent, blob = ("", *os.readlink(path).split("/"))
            if parent == "blobs" and BLOB.fullmatch(blob):
                return blob[:32]
        entry = found.get(name)
        if entry is None:
            return None
        try:
            return entry[-1] if tuple(entry[:-1]) == _stamp(os.stat(path)) else None
        except OSError:
            return None

    return [digest(name) for name in names]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


@contextmanager
def _alone(kept: Path, what: str, long: bool) -> Iterator[None]:
    """While long files are read, other processes that need them wait for their digests, where the cache can be written."""
    with ExitStack() as stack:
        if long:
            with suppress(OSError):
                stack.enter_context(locked(kept.with_suffix(".lock"), what))
        yield


def _read(folder: Path, names: Sequence[str], long: bool) -> Iterator[tuple[Stamp | None, str]]:
    """Stamp (None where it cannot be relied upon) and digest of each file, under a bar where that is long."""
    from common.runtime.progress import progress_bar

    with ExitStack() as stack:
        total = sum(_size(folder / name) for name in names) // 2**20
        bar = stack.enter_context(progress_bar("reading files (MiB)", total)) if long else None
        finished = 0
        for name, found in zip(names, in_threads(lambda name: _digest(folder / name), names, None), strict=True):
            finished += _size(folder / name) if long else 0
            if bar is not None:
                bar.reach(finished // 2**20)
            yield found


def _digest(path: Path) -> tuple[Stamp | None, str]:
    now = time.time_ns()
    reason = why_no_file(path)
    if reason not in (None, MISSING):  # a pipe would be waited for
        return None, f"unreadable: {reason}"
    try:
        with open(path, "rb") as handle:
            before = os.fstat(handle.fileno())
            digest = hashlib.file_digest(handle, "sha256").hexdigest()[:32]
            after = os.fstat(handle.fileno())
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise InputError(f"{path} is not there any more; put it back, or start again.") from error
        return None, f"unreadable: {error.strerror}"
    settled = _stamp(before) == _stamp(after) and now - max(before.st_mtime_ns, before.st_ctime_ns) > SETTLED
    return (_stamp(before) if settled else None), digest
