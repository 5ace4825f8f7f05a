"""A data set of the Hugging Face `datasets` library, from a hub or from files: images, decoded when asked for, and captions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.data.captions import caption_of
from common.data.image_check import captioned_images, readable_images
from common.data.lazy_images import Interpolation
from common.data.splits import CaptionedImages, Images, check_count, evenly_spaced, split_rows
from common.errors import InputError, first_line
from common.runtime.content import content_name, located, path_content, while_unchanged
from common.runtime.regular_files import read_regular
from common.settings import AtLeastOne, Count, ImageSize


class HubImages:
    """The image column of a datasets.Dataset, to be read by number (common.data.lazy_images.Source).

    given: what the data set was loaded by, in which the images of a folder stay. chosen: the numbers of its rows in the split.
    """

    def __init__(self, dataset: Any, column: str, given: str, split: str, chosen: Sequence[int]):
        self.dataset, self.column, self.place = dataset, column, f"{given} ({split})"
        local, paths = located(given), sorted(Path(file["filename"]) for file in dataset.cache_files)
        held = [path_content(path) for path in [*paths, *([] if local is None else [local])]]
        self.content = content_name(held, split, [int(row) for row in chosen])

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, row: int) -> str:
        path = (self.dataset[row][self.column] or {}).get("path")
        return f"row {row}" if path is None else Path(path).name

    def read(self, row: int) -> bytes:
        cell = self.dataset[row][self.column]
        if cell is None:
            raise OSError("there is no image")
        return read_regular(Path(cell["path"])) if cell["bytes"] is None else cell["bytes"]


@while_unchanged  # a job asks more than once
def load_hub_dataset(
    path: str | None,
    split: str,
    name: str | None,
    revision: str | None,
    image_column: str,
    caption_column: str | None,
    train_split: str,
    test_split: str | None,
    size: ImageSize,
    interpolation: Interpolation,
    limit: AtLeastOne | None,
    expected: Count | None,
    width: ImageSize | None = None,
) -> CaptionedImages | Images:
    """Images of a data set of a hub ("owner/name"), a folder or a .parquet file, with captions where a column has them.

    split: "train" is `train_split` and "test" is `test_split` of the data set; without one, every tenth row of `train_split`
    is held out. Rows whose image cannot be read are skipped; these, empty captions, and another number of rows of
    `train_split` than `expected` are each told in one line. InputError when the library is missing, or what was asked for.
    """
    if split not in ("train", "test"):
        raise InputError(f"{path} holds no image of split={split!r}; the splits are 'train' and 'test'.")
    own = train_split if split == "train" or test_split is None else test_split
    dataset = open_dataset(path, name, revision, own, test_split is None)
    import datasets

    wanted_columns = [column for column in (image_column, caption_column) if column is not None]
    absent = [column for column in wanted_columns if column not in dataset.column_names]
    if absent:
        found = ", ".join(dataset.column_names)
        raise InputError(f"{path} has no column {absent[0]!r}, it has {found}: task.data.image_column and caption_column.")
    if own == train_split:
        check_count(path, len(dataset), expected, "image")
    rows = range(len(dataset)) if test_split is not None else split_rows(len(dataset), split)
    chosen = evenly_spaced(rows, limit)
    dataset = dataset.select(chosen)
    try:  # images as they are stored: their bytes, or their paths
        stored = dataset.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
    except Exception as error:  # pyarrow's kinds
        raise InputError(f"{path}: the column {image_column!r} holds no images ({first_line(error)}).") from error
    images = HubImages(stored, image_column, path, own, chosen)
    if caption_column is None:
        return Images(readable_images(images, split, size, interpolation, width))
    return captioned_images(images, [caption_of(value) for value in dataset[caption_column]], split, size, interpolation, width)


def open_dataset(path: str | None, name: str | None, revision: str | None, split: str, alone: bool) -> Any:
    """One split of a data set; InputError in one line for what the library cannot load.

    alone: no other split is asked for. Of what has no splits (a .parquet file, one split saved to disk), there is none.
    """
    try:
        import datasets
    except ImportError as error:
        raise InputError('task/data=hf_dataset needs the extra: pip install -c constraints.txt -e ".[datasets]".') from error
    if path is None:
        raise InputError("task.data.path=None: give a data set of a hub (owner/name), a folder, or a .parquet file.")
    local = Path(path)
    parquet = local.suffix.lower() == ".parquet"
    if not alone and (parquet or (local / "state.json").is_file()):
        raise InputError(f"task.data.test_split: {path} has no splits; give null, and every tenth row is held out.")
    try:
        if (local / "dataset_dict.json").is_file() or (local / "state.json").is_file():
            saved = datasets.load_from_disk(path)
            return saved[split] if isinstance(saved, dict) else saved
        if parquet:
            return datasets.load_dataset("parquet", data_files=path, split="train")
        return datasets.load_dataset(path, name, revision=revision, split=split)
    except Exception as error:  # the library and the hub's client raise many kinds
        told = f"task.data.path={path!r}, split {split!r}, cannot be loaded as a data set"
        raise InputError(f"{told}: {first_line(error)}") from error
