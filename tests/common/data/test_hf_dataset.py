"""Data sets of the `datasets` library, from local files: equal to the same images in a captioned folder."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from common.data.captioned_folder import load_captioned_folder
from common.data.hf_dataset import load_hub_dataset
from common.errors import InputError
from tests.common.data.test_captioned_folder import load, write_folder

datasets = pytest.importorskip("datasets")
DEFAULTS = {
    "name": None,
    "revision": None,
    "image_column": "image",
    "caption_column": "text",
    "train_split": "train",
    "test_split": None,
    "size": 32,
    "interpolation": "bilinear",
    "limit": None,
    "expected": None,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    datasets.disable_progress_bars()


def load_hub(path, split="train", **settings):
    return load_hub_dataset(str(path), split, **{**DEFAULTS, **settings})


def write_parquet(folder, path, change=lambda rows: rows):
    rows = [
        {"picture": {"bytes": (folder / f"{index:02d}.png").read_bytes(), "path": f"{index:02d}.png"}, "text": f"thing {index}"}
        for index in range(len(list(folder.glob("*.png"))))
    ]
    datasets.Dataset.from_list(change(rows)).to_parquet(str(path))
    return path


def test_a_folder_of_images_equals_our_own_loader(tmp_path):
    folder = write_folder(tmp_path / "a")
    for split in ("train", "test"):
        ours, theirs = load(folder, split), load_hub(folder, split)
        assert theirs.captions == ours.captions and torch.equal(theirs.images[:], ours.images[:])
    assert load_hub(folder, limit=6).captions == load(folder, limit=6).captions


def test_a_parquet_file_with_damage(tmp_path, capsys):
    folder = write_folder(tmp_path / "a", 9)

    def change(rows):
        rows[2]["picture"] = {"bytes": b"no picture", "path": "02.png"}
        rows[3]["picture"] = None
        rows[4]["text"] = None
        return rows

    path = write_parquet(folder, tmp_path / "b.parquet", change)
    data = load_hub(path, image_column="picture", expected=10)
    assert data.captions == ["thing 0", "thing 1", "", "thing 5", "thing 6", "thing 7", "thing 8"]
    assert [int(image[0, 0, 0]) for image in data.images] == [0, 10, 40, 50, 60, 70, 80]
    told = capsys.readouterr().err
    assert "9 images, and 10 are expected" in told and "1 of 7 captions are empty (02.png" not in told
    assert "2 of 9 files skipped, damaged (02.png: not an image; row 3: there is no image)" in told
    assert "1 of 7 captions are empty (04.png)" in told


def test_splits_saved_to_disk_and_images_alone(tmp_path):
    folder = write_folder(tmp_path / "a", 5)
    whole = datasets.load_dataset(str(folder), split="train")
    datasets.DatasetDict({"train": whole.select([0, 1, 2]), "val": whole.select([3, 4])}).save_to_disk(tmp_path / "saved")
    assert len(load_hub(tmp_path / "saved", test_split="val")) == 3
    assert load_hub(tmp_path / "saved", "test", test_split="val").captions == ["thing 3, red", "thing 4, red"]
    alone = load_hub(tmp_path / "saved", test_split="val", caption_column=None)
    assert not hasattr(alone, "captions") and alone.images.shape == (3, 3, 32, 32)


def test_replaced_files_and_other_rows_are_other_content(tmp_path):
    """Pictures of the same names and sizes, and the equally many rows of the other split."""

    def content(split="train"):
        return load_hub(folder, split, limit=2).images.source.content

    folder = write_folder(tmp_path / "a", 20)
    train = content()
    assert train != content("test") and train == content()
    path = folder / "00.png"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert content() != train


def test_what_has_no_splits_is_not_its_own_test_split(tmp_path):
    folder = write_folder(tmp_path / "a", 5)
    path = write_parquet(folder, tmp_path / "b.parquet")
    datasets.load_dataset(str(folder), split="train").save_to_disk(tmp_path / "saved")
    for where, column in ((path, "picture"), (tmp_path / "saved", "image")):
        assert len(load_hub(where, image_column=column)) == 5
        for split in ("train", "test"):
            with pytest.raises(InputError, match=r"test_split: .* has no splits; give null"):
                load_hub(where, split, image_column=column, test_split="validation")


def test_what_cannot_be_loaded_is_told(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "a", 3)
    for settings, expected in {
        ("image_column", "picture"): "no column 'picture', it has",
        ("caption_column", "title"): "no column 'title', it has",
        ("image_column", "text"): "no readable image|holds no images",
        ("train_split", "dev"): "split 'dev', cannot be loaded as a data set",
    }.items():
        with pytest.raises(InputError, match=expected):
            load_hub(folder, **dict([settings]))
    with pytest.raises(InputError, match="cannot be loaded as a data set"):
        load_hub(tmp_path / "nowhere")
    with pytest.raises(InputError, match="task.data.path=None"):
        load_hub_dataset(None, "train", **DEFAULTS)
    load_captioned_folder.cache_clear()
    load_hub_dataset.cache_clear()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"needs the extra: pip install .*\[datasets\]"):
        load_hub(folder)


def test_a_large_parquet_is_not_decoded_at_once(tmp_path):
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "00.png")
    path = write_parquet(tmp_path, tmp_path / "b.parquet", lambda rows: rows * 30)
    data = load_hub(path, image_column="picture")
    assert len(data) == 27 and data.images[[26, 0]].shape == (2, 3, 32, 32)
