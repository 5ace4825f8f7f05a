"""A folder of images with captions in metadata.csv or metadata.jsonl: BK-SDM's layout, and Hugging Face's imagefolder."""

from pathlib import Path

from common.data.captions import read_metadata
from common.data.image_check import captioned_images
from common.data.lazy_images import Interpolation
from common.data.splits import (
    CaptionedImages,
    Files,
    check_count,
    evenly_spaced,
    folder_of_split,
    split_rows,
    tell,
)
from common.runtime.content import while_unchanged
from common.runtime.regular_files import MISSING, why_no_file
from common.runtime.threads import in_threads
from common.settings import AtLeastOne, Count, ImageSize


@while_unchanged  # a job asks more than once
def load_captioned_folder(
    folder: str | Path | None,
    split: str,
    size: ImageSize,
    interpolation: Interpolation,
    caption_column: str,
    test_folder: str | Path | None,
    limit: AtLeastOne | None,
    expected: Count | None,
    width: ImageSize | None = None,
) -> CaptionedImages:
    """Images below `folder` and their captions, at most `limit` evenly spaced ones; shorter side resized, middle cropped.

    split: "test" is `test_folder` where one is given, else every tenth row of `folder`, and "train" the others. Rows whose
    file is missing or cannot be read are skipped; these, captions that are empty, and another number of rows than `expected`
    in `folder` are each told in one line on standard error. InputError for a folder without metadata or without any image.
    """
    where, own = folder_of_split(folder, test_folder, split, "captioned image")
    names, captions = read_metadata(where, caption_column)
    if own:
        check_count(where, len(names), expected, "captioned image")
    rows = range(len(names)) if test_folder is not None else split_rows(len(names), split)
    wanted = [int(row) for row in evenly_spaced(rows, limit)]
    reasons = list(in_threads(lambda row: why_no_file(where / names[row]), wanted, None))
    missing = [names[row] for row, reason in zip(wanted, reasons, strict=True) if reason == MISSING]
    others = [f"{names[row]}: {reason}" for row, reason in zip(wanted, reasons, strict=True) if reason not in (None, MISSING)]
    for what, found in (("skipped, missing", missing), ("skipped, no files", others)):
        if found:
            tell(where, wanted, what, found)
    there = [row for row, reason in zip(wanted, reasons, strict=True) if reason is None]
    source = Files(where, [names[row] for row in there])
    return captioned_images(source, [captions[row] for row in there], split, size, interpolation, width)
