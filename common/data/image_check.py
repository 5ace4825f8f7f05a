"""Which images of a source can be read: every one is decoded once, and what was found is remembered."""

import json
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from common.data.lazy_images import DAMAGE, Source, open_picture
from common.data.splits import tell
from common.runtime.content import content_name
from common.runtime.files import user_cache, write_json
from common.runtime.progress import progress_bar
from common.runtime.threads import in_threads

UNREAD = "not to be had"  # a lost connection or a missing permission: not damage, and perhaps gone next time


def readable(source: Source, wanted: Sequence[int], description: str) -> np.ndarray:
    """The wanted rows of `source` whose images can be decoded; the others are told in one line on standard error.

    Every image is decoded once; what was found is kept in common.runtime.files.user_cache() under the content of the source,
    unless the system refused one of the files.
    """
    wanted = np.asarray(wanted, np.int64)
    kept = user_cache() / "readable" / f"{content_name(source.content, wanted.tolist())}.json"
    damaged = _known_damage(kept)
    if damaged is None:
        damaged = {}
        with progress_bar(description, len(wanted)) as bar:
            for row, error in zip(wanted.tolist(), in_threads(partial(_damage, source), wanted.tolist(), None), strict=True):
                bar.advance()
                if error is not None:
                    damaged[row] = error
        if not any(error.startswith(UNREAD) for error in damaged.values()):
            with suppress(OSError):  # a full or read-only home: they are looked at again next time
                write_json(kept, damaged)
    if damaged:
        names = [f"{source.name(row)}: {error}" for row, error in damaged.items()]
        tell(source.place, wanted, "skipped, damaged", names)
    return wanted[~np.isin(wanted, list(damaged))]


def _known_damage(kept: Path) -> dict[int, str] | None:
    try:
        return {int(row): error for row, error in json.loads(kept.read_text()).items()}
    except (OSError, ValueError, AttributeError):
        return None


def _damage(source: Source, row: int) -> str | None:
    """What is wrong with an image, in a few words; None for a good one."""
    try:
        open_picture(source.read(row))
    except Image.UnidentifiedImageError:
        return "not an image"
    except DAMAGE as error:
        return f"{UNREAD}: {error.strerror}" if getattr(error, "errno", None) else str(error)
    return None
