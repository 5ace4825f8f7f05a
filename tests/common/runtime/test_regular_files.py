"""What lies below a folder and is no file is skipped, counted and named; nothing waits for it."""

import os
import shutil
import socket

import pytest
import soundfile
from PIL import Image

from common.data.audio_folder import load_audio_folder
from common.data.captioned_folder import load_captioned_folder
from common.data.image_folder import load_image_folder
from common.data.webdataset_folder import load_tar_folder
from common.runtime import regular_files
from common.runtime.regular_files import files_below, read_regular, why_no_file
from tests.common.data.test_audio_folder import SOUND, noise
from tests.common.data.test_webdataset_folder import sample, write_tar

REASONS = {
    "away": "a link that leads nowhere",
    "device": "a device",
    "folder": "a folder",
    "loop": "a link to itself",
    "pipe": "a pipe",
    "socket": "a socket",
}


def put_no_files(folder, ending):
    """One of each kind with that ending; the names of REASONS."""
    (folder / f"away.{ending}").symlink_to(folder / "nowhere")
    (folder / f"device.{ending}").symlink_to("/dev/zero")
    (folder / f"folder.{ending}").mkdir()
    (folder / f"loop.{ending}").symlink_to(f"loop.{ending}")
    os.mkfifo(folder / f"pipe.{ending}")
    here = os.getcwd()
    os.chdir(folder)  # the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"socket.{ending}")
    finally:
        os.chdir(here)


def told_of(ending, count):
    names = [f"{name}.{ending}: {reason}" for name, reason in REASONS.items()]
    return f"6 of {count} files skipped, no files ({'; '.join(names[:5])}, and 1 more)"


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for index in range(3):
        Image.new("RGB", (16, 16)).save(folder / f"{index}.png")
    put_no_files(folder, "png")
    return folder


def test_a_folder_of_images(pictures, capsys):
    assert len(load_image_folder(pictures, "train", 16)) == 3
    assert told_of("png", 9) in capsys.readouterr().err


def test_a_folder_with_captions(pictures, capsys):
    names = ["0", *REASONS, "none", "1", "a\0b"]
    rows = [f"{name}.png" for name in names]
    (pictures / "metadata.csv").write_text("file_name,text\n" + "".join(f"{row},x\n" for row in rows))
    os.mkfifo(pictures / "folder.png" / "metadata.csv")
    data = load_captioned_folder(pictures, "train", 16, "bilinear", "text", pictures, None, None)
    told = capsys.readouterr().err
    assert len(data) == 2 and "1 of 10 files skipped, missing (none.png)" in told
    assert "7 of 10 files skipped, no files (away.png: a link that leads nowhere; device.png: a device; folder" in told
    assert "1 of 2 files skipped, no files (folder.png/metadata.csv: a pipe)" in told


def test_a_folder_of_recordings(tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", noise(1, 8000), 8000)
    put_no_files(tmp_path, "wav")
    assert len(load_audio_folder(tmp_path, "train", None, SOUND)) == 4
    assert told_of("wav", 7) in capsys.readouterr().err


def test_a_folder_of_tar_files(tmp_path, capsys):
    write_tar(tmp_path / "A.TAR", sample(1))
    put_no_files(tmp_path, "tar")
    assert len(load_tar_folder(tmp_path, "train", 32, "bilinear", None, tmp_path, None, None)) == 1
    assert told_of("tar", 7) in capsys.readouterr().err


def test_a_file_that_became_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(OSError, match="it is a pipe"):
        read_regular(tmp_path / "a.png")


def test_folders_that_cannot_be_looked_into_are_named(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.png").touch()
    scandir = os.scandir

    def closed(path):
        if str(path).endswith("closed"):  # root, as whom tests may run, may look into all
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(regular_files.os, "scandir", closed)
    assert files_below(tmp_path, lambda name: True) == ([tmp_path / "a.png"], ["closed: Permission denied", "closed: a folder"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read all")
def test_a_file_without_permission_is_skipped_and_named(pictures, capsys):
    (pictures / "1.png").chmod(0)
    assert len(load_image_folder(pictures, "train", 16)) == 2
    assert "1.png: not to be had: Permission denied" in capsys.readouterr().err


def test_names_longer_than_the_system_takes(tmp_path):
    assert why_no_file(tmp_path / ("x" * 300)) == "File name too long"
    assert why_no_file(tmp_path / "half\ud83d") == "no name of a file"
    shutil.copyfile(__file__, tmp_path / "a")
    (tmp_path / "b").symlink_to("a")
    assert why_no_file(tmp_path / "b") is None and why_no_file(tmp_path / "c") == "missing"
