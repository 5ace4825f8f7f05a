"""Folders with captions: rows in order, splits, and what is missing, damaged or empty told in a line."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from common.data.captioned_folder import load_captioned_folder
from common.data.captions import read_prompts
from common.errors import InputError


def write_folder(folder, count=20, caption=lambda index: f"thing {index}, red"):
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["file_name,text"]
    for index in range(count):
        Image.fromarray(np.full((40, 60, 3), 10 * index, np.uint8)).save(folder / f"{index:02d}.png")
        lines.append(f'{index:02d}.png,"{caption(index)}"')
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


def load(folder, split="train", size=32, test_folder=None, limit=None, expected=None, caption_column="text"):
    return load_captioned_folder(folder, split, size, "bilinear", caption_column, test_folder, limit, expected)


def values(data):
    return [int(image[0, 16, 16]) for image in data.images]


def test_rows_captions_and_splits(tmp_path):
    folder = write_folder(tmp_path / "a")
    train, test = load(folder), load(folder, "test")
    assert train.images.shape == (18, 3, 32, 32) and len(train) == 18 and train.names is None
    assert test.captions == ["thing 9, red", "thing 19, red"] and values(test) == [90, 190]
    assert [int(caption.split()[1].strip(",")) * 10 for caption in train.captions] == values(train)
    few = load(folder, limit=6)
    assert few.captions == train.captions[::3] and torch.equal(few.images[:], train.images[::3])


def test_a_folder_of_its_own_for_tests(tmp_path):
    folder, other = write_folder(tmp_path / "a", 6), write_folder(tmp_path / "b", 4, lambda index: f"other {index}")
    assert len(load(folder, test_folder=other)) == 6
    assert load(folder, "test", test_folder=other).captions == [f"other {index}" for index in range(4)]
    assert len(load(None, "test", test_folder=other)) == 4
    with pytest.raises(InputError, match=r"task\.data\.test_folder=.*nowhere is no folder"):
        load(folder, "test", test_folder=tmp_path / "nowhere")


def test_json_lines_in_folders_below(tmp_path):
    for part in ("x", "y"):
        write_folder(tmp_path / part, 3)
        (tmp_path / part / "metadata.csv").unlink()
        rows = [{"file_name": f"{index:02d}.png", "title": [f"{part}{index}", "second"]} for index in (2, 0)]
        (tmp_path / part / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    data = load(tmp_path, caption_column="title")
    assert data.captions == ["x2", "x0", "y2", "y0"] and values(data) == [20, 0, 20, 0]


def test_what_is_missing_damaged_or_empty_is_counted_and_named(tmp_path, capsys):
    folder = write_folder(tmp_path / "a", 9, lambda index: "" if index in (5, 6) else f"thing {index}")
    (folder / "01.png").unlink()
    damaged = folder / "02.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    (folder / "03.png").write_text("no picture")
    data = load(folder, expected=12)
    assert data.captions == ["thing 0", "thing 4", "", "", "thing 7", "thing 8"] and values(data) == [0, 40, 50, 60, 70, 80]
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith(str(folder))]
    assert told == [
        f"{folder}: 9 captioned images, and 12 are expected of this data set",
        f"{folder}: 1 of 9 files skipped, missing (01.png)",
        f"{folder}: 2 of 8 files skipped, damaged (02.png: {told[2].split('02.png: ')[1].split(';')[0]}; 03.png: not an image)",
        f"{folder}: 2 of 6 captions are empty (05.png; 06.png)",
    ]


def test_damage_is_found_once_and_remembered(tmp_path, capsys, monkeypatch):
    import common.data.image_check

    monkeypatch.setenv("BONSAI_CACHE", str(tmp_path / "cache"))
    folder = write_folder(tmp_path / "a", 4)
    (folder / "02.png").write_text("no picture")
    assert len(load(folder)) == 3 and "checking" in capsys.readouterr().err
    load_captioned_folder.cache_clear()
    monkeypatch.setattr(common.data.image_check, "open_picture", None)  # would fail if any image were decoded again
    assert len(load(folder)) == 3
    told = capsys.readouterr().err
    assert "checking" not in told and "02.png: not an image" in told
    monkeypatch.undo()
    monkeypatch.setenv("BONSAI_CACHE", str(tmp_path / "cache"))
    Image.fromarray(np.full((40, 60, 3), 20, np.uint8)).save(folder / "02.png")  # put right
    assert len(load(folder)) == 4


def test_what_the_system_refuses_is_not_remembered_as_damage(tmp_path, capsys, monkeypatch):
    from common.data.splits import Files

    monkeypatch.setenv("BONSAI_CACHE", str(tmp_path / "cache"))
    folder, read = write_folder(tmp_path / "a", 4), Files.read

    def refused(self, row):
        if row == 2:
            raise OSError(5, "Input/output error")
        return read(self, row)

    with monkeypatch.context() as patched:
        patched.setattr(Files, "read", refused)
        assert values(load(folder)) == [0, 10, 30]
    assert "1 of 4 files skipped, damaged (02.png: not to be had: Input/output error)" in capsys.readouterr().err
    load_captioned_folder.cache_clear()
    assert values(load(folder)) == [0, 10, 20, 30] and "damaged" not in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("BONSAI_CACHE", str(tmp_path / "file"))
    assert len(load(write_folder(tmp_path / "a", 3))) == 3


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (None, "has no metadata.csv or metadata.jsonl"),
        ("metadata.csv:name,text\n00.png,a\n", "no column 'file_name', it has name, text"),
        ("metadata.csv:file_name,label\n00.png,a\n", "no column 'text', it has file_name, label"),
        ('metadata.jsonl:{"file_name": "00.png", "text": "a"}\n{"file', "damaged in line 2"),
        ("metadata.csv:file_name,text\nnone.png,a\n", "holds no readable image"),
        ("metadata.csv:file_name,text\n", "holds no readable image"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path, table, expected):
    write_folder(tmp_path, 1)
    (tmp_path / "metadata.csv").unlink()
    if table is not None:
        name, _, text = table.partition(":")
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=expected):
        load(tmp_path)


def test_settings_are_checked(tmp_path):
    folder = write_folder(tmp_path, 3)
    with pytest.raises(InputError, match=r"task\.data\.folder=None is no folder"):
        load(None)
    with pytest.raises(InputError, match="the splits are"):
        load(folder, "dev")


def test_prompts_of_a_file(tmp_path):
    text, table, lines = (tmp_path / name for name in ("a.txt", "b.csv", "c.jsonl"))
    text.write_text("a cat\n\n  a dog  \n\t\nthird\n")
    assert read_prompts(text) == (["a cat", "a dog", "third"], 2)
    table.write_text('file_name,text\n1.jpg,"a cat, sitting"\n2.jpg,\n3.jpg,a dog\n')
    assert read_prompts(table) == (["a cat, sitting", "a dog"], 1)
    lines.write_text('{"prompt": "x"}\n{"caption": "y", "file_name": "z"}\n')
    assert read_prompts(lines) == (["x", "y"], 0)
    for content, expected in {"": "holds no prompt", "\n \n": "holds no prompt"}.items():
        text.write_text(content)
        with pytest.raises(InputError, match=expected):
            read_prompts(text)
    table.write_text("file_name,label\n1.jpg,a\n")
    with pytest.raises(InputError, match="columns file_name, label, none of prompt, text, caption"):
        read_prompts(table)
    text.write_bytes(b"\xff\xfe\x00")
    for path in (text, tmp_path / "nowhere.txt"):
        with pytest.raises(InputError, match=r"no UTF-8 text|cannot be read: it is missing"):
            read_prompts(path)
