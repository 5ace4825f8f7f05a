"""WebDataset shards read by number: equal to the files that were packed, and to what the webdataset library reads."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from common.data.lazy_images import resized_and_cropped
from common.data.webdataset_folder import list_samples, load_tar_folder
from common.errors import InputError


def png(value):
    buffer = io.BytesIO()
    Image.fromarray(np.full((40, 60, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def sample(index, caption=None):
    name, caption = f"{index:05d}", f"thing {index}" if caption is None else caption
    document = json.dumps({"caption": f"json {index}", "width": 60}).encode()
    return [(f"{name}.png", png(10 * index % 256)), (f"{name}.txt", caption.encode()), (f"{name}.json", document)]


@pytest.fixture
def folder(tmp_path):
    for tar in range(4):
        write_tar(tmp_path / "tars" / f"{tar}.tar", [member for row in range(5) for member in sample(5 * tar + row)])
    return tmp_path / "tars"


def load(folder, split="train", caption_key=None, test_folder=None, limit=None, expected=None):
    return load_tar_folder(folder, split, 32, "bilinear", caption_key, test_folder, limit, expected)


def values(data):
    return [int(image[0, 16, 16]) for image in data.images]


def test_samples_captions_and_splits(folder, tmp_path):
    train, test = load(folder), load(folder, "test")
    assert test.captions == ["thing 9", "thing 19"] and values(test) == [90, 190]
    assert len(train) == 18 and [f"thing {value // 10}" for value in values(train)] == train.captions
    assert torch.equal(train.images[[4, 2]], torch.stack([train.images[4], train.images[2]]))
    assert load(folder, "test", caption_key="caption").captions == ["json 9", "json 19"]
    assert load(folder, limit=6).captions == train.captions[::3]
    other = write_tar(tmp_path / "other" / "a.tar", sample(3)).parent
    assert load(folder, "test", test_folder=other).captions == ["thing 3"] and len(load(folder, test_folder=other)) == 20


def test_shards_of_the_webdataset_library(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    generator = np.random.default_rng(0)
    pictures = [generator.integers(0, 255, (32 + index, 48, 3), dtype=np.uint8) for index in range(5)]
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for index, picture in enumerate(pictures):
            writer.write({"__key__": f"part/{index}", "png": picture, "txt": f"a drawing, {index}"})
    data = load(tmp_path)
    theirs = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False).decode("pil"))
    assert data.captions == [each["txt"] for each in theirs]
    for ours, each in zip(data.images, theirs, strict=True):
        assert np.array_equal(ours.permute(1, 2, 0).numpy(), np.asarray(resized_and_cropped(each["png"], 32, "bilinear")))


def test_the_places_of_members_are_listed_once(folder, monkeypatch):
    first = list_samples(folder, None)
    monkeypatch.setattr(tarfile, "open", None)  # would fail if a tar file were listed again
    assert list_samples(folder, None) == first and len(first) == 20
    monkeypatch.undo()
    write_tar(folder / "0.tar", sample(7))
    assert len(list_samples(folder, None)) == 16


def test_what_is_missing_damaged_or_empty_is_counted_and_named(folder, capsys):
    members = [*sample(50), ("00051.txt", b"no image"), ("00052.png", b"no picture"), *sample(53, caption=" \n")]
    write_tar(folder / "0.tar", [*members, ("00054.json", b"{broken"), ("00054.png", png(54))])
    with tarfile.open(write_tar(folder / "3.tar", [*sample(60), *sample(61)])) as archive:
        end = archive.getmember("00061.png").offset_data + 20
    (folder / "3.tar").write_bytes((folder / "3.tar").read_bytes()[:end])
    for tar in ("1", "2"):
        (folder / f"{tar}.tar").unlink()
    data = load(folder, expected=9)
    told = capsys.readouterr().err
    assert data.captions[:3] == ["thing 50", "", ""] and "thing 60" in data.captions and "thing 61" not in data.captions
    assert f"{folder}: 1 of 2 files damaged, read as far as they go (3.tar: " in told
    assert "1 of 6 samples skipped, without an image (0.tar/00051)" in told
    assert "1 of 5 files skipped, damaged (0.tar/00052: not an image)" in told
    assert "2 of 4 captions are empty (0.tar/00053; 0.tar/00054)" in told and "5 samples, and 9 are expected" in told


def test_what_cannot_be_read_is_told(folder, tmp_path):
    with pytest.raises(InputError, match=r"task\.data\.folder=None is no folder"):
        load(None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no \.tar file"):
        load(tmp_path / "empty")
    with pytest.raises(InputError, match="the splits are"):
        load(folder, "dev")


def test_members_that_are_no_files_or_lead_out_are_names_alone(tmp_path, capsys):
    path = write_tar(tmp_path / "a.tar", [("../../out/1.png", png(10)), ("../../out/1.txt", b"one"), ("/abs/2.png", png(20))])
    with tarfile.open(path, "a") as archive:
        for kind, name in ((tarfile.SYMTYPE, "3.png"), (tarfile.LNKTYPE, "4.png"), (tarfile.FIFOTYPE, "5.png")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/hostname"
            archive.addfile(info)
    data = load_tar_folder(tmp_path, "train", 32, "bilinear", None, tmp_path, None, None)
    assert data.captions == ["one", ""] and values(data) == [10, 20]
    assert "3 of 5 members skipped, links or devices (a.tar/3.png; a.tar/4.png; a.tar/5.png)" in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.tar"]


def test_a_tar_file_without_permission_is_not_remembered_as_damaged(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("BONSAI_CACHE", str(tmp_path / "cache"))  # where no list of the same content is kept
    opened = tarfile.open

    def refused(path, mode):
        if path.name == "0.tar":
            raise PermissionError(13, "Permission denied")
        return opened(path, mode)

    with monkeypatch.context() as patched:
        patched.setattr(tarfile, "open", refused)
        assert len(list_samples(folder, None)) == 15
    assert "(0.tar: [Errno 13] Permission denied)" in capsys.readouterr().err
    assert len(list_samples(folder, None)) == 20
