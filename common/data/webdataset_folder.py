"""WebDataset shards: tar files in which the files of one sample share a name (000017.jpg, 000017.txt, 000017.json).

The webdataset library reads such files from front to end and shuffles in a buffer. Here a batch is a function of the seed
and its number alone (common/training/batches.py), and calibration draws single rows, so that samples must be found by number:
the places of all members are listed once for each tar file, kept in common.runtime.files.user_cache(), and read by seeking. Tar
files must therefore not be compressed.
"""

import json
import tarfile
from pathlib import Path
from typing import Any

from common.data.captions import caption_of
from common.data.image_check import captioned_images
from common.data.image_folder import ENDINGS
from common.data.lazy_images import Interpolation
from common.data.splits import (
    CaptionedImages,
    check_count,
    evenly_spaced,
    folder_of_split,
    split_rows,
    tell,
)
from common.errors import InputError
from common.runtime.content import check_stamp, content_name, file_digests, path_content, stamp_of, while_unchanged
from common.runtime.files import remember, remembered, user_cache
from common.runtime.progress import progress_bar
from common.runtime.regular_files import files_below
from common.settings import AtLeastOne, Count, ImageSize

Sample = tuple[str, int, int, str]  # name, place of the image in the tar file, its bytes, caption


class TarMembers:
    """Images inside of tar files, to be read by number (common.data.lazy_images.Source)."""

    def __init__(self, folder: Path, samples: list[tuple[str, Sample]]):
        self.place, self.samples = str(folder), samples
        tars = sorted({tar for tar, _ in samples})
        self.stamps = {tar: stamp_of(folder / tar) for tar in tars}
        places = [(tar, name, start, size) for tar, (name, start, size, _) in samples]
        self.content = content_name(list(zip(tars, file_digests(folder, tars), strict=True)), places)

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, row: int) -> str:
        tar, sample = self.samples[row]
        return f"{tar}/{sample[0]}"

    def read(self, row: int) -> bytes:
        tar, (_, start, size, _) = self.samples[row]
        check_stamp(Path(self.place, tar), self.stamps[tar])
        with open(Path(self.place, tar), "rb") as handle:
            handle.seek(start)
            return handle.read(size)


@while_unchanged  # a job asks more than once
def load_tar_folder(
    folder: str | Path | None,
    split: str,
    size: ImageSize,
    interpolation: Interpolation,
    caption_key: str | None,
    test_folder: str | Path | None,
    limit: AtLeastOne | None,
    expected: Count | None,
    width: ImageSize | None = None,
) -> CaptionedImages:
    """Images and captions of the samples in the .tar files below `folder`, at most `limit` evenly spaced ones.

    caption_key: a key of each sample's .json member; None takes its .txt member. split: "test" is `test_folder` where one is
    given, else every tenth sample, and "train" the others. Samples without an image, images that cannot be read, empty
    captions, damaged tar files, and another number of samples than `expected` are each told in one line on standard error.
    InputError for a folder without tar files or without any image.
    """
    where, own = folder_of_split(folder, test_folder, split, ".tar file")
    samples = list_samples(where, caption_key)
    if own:
        check_count(where, len(samples), expected, "sample")
    rows = range(len(samples)) if test_folder is not None else split_rows(len(samples), split)
    source = TarMembers(where, [samples[row] for row in evenly_spaced(rows, limit)])
    return captioned_images(source, [sample[3] for _, sample in source.samples], split, size, interpolation, width)


def list_samples(folder: Path, caption_key: str | None) -> list[tuple[str, Sample]]:
    """Every sample with an image, with its tar file's name, in the order of the names and of the members."""
    tars, others = files_below(folder, lambda name: name.lower().endswith(".tar"))
    if others:
        tell(folder, [*tars, *others], "skipped, no files", others)
    if not tars:
        raise InputError(f"{folder} holds no .tar file (compressed ones, .tar.gz, cannot be read by number).")
    lists = {tar: kept_list(tar, caption_key) for tar in tars}
    waiting = [tar for tar, found in lists.items() if found is None]
    if waiting:
        with progress_bar("listing tar files", len(waiting)) as bar:
            for tar in waiting:
                lists[tar] = list_members(tar, caption_key)
                if not lists[tar]["refused"]:
                    remember(list_path(tar, caption_key), lists[tar])
                bar.advance()
    samples, without_image, links, damaged = [], [], [], []
    for tar, found in lists.items():
        name = str(tar.relative_to(folder))
        samples += [(name, tuple(sample)) for sample in found["samples"]]
        without_image += [f"{name}/{sample}" for sample in found["without_image"]]
        links += [f"{name}/{member}" for member in found["links"]]
        damaged += [f"{name}: {found['damage']}"] if found["damage"] else []
    if links:
        tell(folder, [*samples, *links], "skipped, links or devices", links, things="members")
    if damaged:
        tell(folder, tars, "damaged, read as far as they go", damaged)
    if without_image:
        tell(folder, [*samples, *without_image], "skipped, without an image", without_image, things="samples")
    return samples


def list_path(tar: Path, caption_key: str | None) -> Path:
    """Where the list of a tar file is kept."""
    return user_cache() / "tars" / f"{content_name(path_content(tar), caption_key, 'with links')}.json"


def kept_list(tar: Path, caption_key: str | None) -> dict[str, Any] | None:
    kept = remembered(list_path(tar, caption_key))
    whole = kept is not None and kept.keys() >= {"samples", "without_image", "damage"}
    return kept if whole else None  # a damaged one is made anew


def list_members(tar: Path, caption_key: str | None) -> dict[str, Any]:
    """samples: of a tar file, as Sample; without_image: names of the others; links: members that are neither files nor folders.

    Nothing is unpacked, and no link followed: what a member's name says of folders is a name. damage: what is wrong with the
    file, or ""; refused: whether that was the system, which may allow it another time.
    """
    found: dict[str, dict[str, Any]] = {}
    damage, refused, links = "", False, []
    total = tar.stat().st_size
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                parent, _, base = member.name.rpartition("/")
                stem, _, kind = base.partition(".")  # WebDataset's rule: the name ends at the first dot
                if not (member.isfile() or member.isdir()):
                    links.append(member.name)
                if not member.isfile() or not stem or member.offset_data + member.size > total:
                    continue
                sample = found.setdefault(f"{parent}/{stem}".lstrip("/"), {})
                kind = kind.lower()
                if f".{kind}" in ENDINGS:
                    sample["image"] = (member.offset_data, member.size)
                elif kind == ("txt" if caption_key is None else "json"):
                    sample["caption"] = read_caption(archive.extractfile(member).read(), caption_key)
    except (tarfile.TarError, OSError, EOFError) as error:
        damage, refused = str(error) or type(error).__name__, isinstance(error, OSError) and error.errno is not None
    return {
        "samples": [(name, *each["image"], each.get("caption", "")) for name, each in found.items() if "image" in each],
        "without_image": [name for name, each in found.items() if "image" not in each],
        "links": links,
        "damage": damage,
        "refused": refused,
    }


def read_caption(content: bytes, caption_key: str | None) -> str:
    """The caption in a .txt member, or under a key of a .json member; "" where there is none."""
    text = content.decode(errors="replace")
    if caption_key is None:
        return caption_of(text)
    try:
        document = json.loads(text)
    except ValueError:
        return ""
    return caption_of(document.get(caption_key)) if isinstance(document, dict) else ""
