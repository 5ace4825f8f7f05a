"""A file is told from another by its whole content, which is read once."""

import os
import shutil
import subprocess
import sys

import pytest

import common.runtime.content
from common.errors import InputError
from common.runtime.content import file_digests, located, path_content, while_unchanged
from tests.commands import ROOT


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of this test's own, in which digests are remembered at once, and the files that are read."""
    monkeypatch.setenv("BONSAI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(common.runtime.content, "SETTLED", -(10**9))
    read, digest = [], common.runtime.content._digest
    monkeypatch.setattr(common.runtime.content, "_digest", lambda path: read.append(path.name) or digest(path))
    return read


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "files" / "deep" / "deeper").mkdir(parents=True)
    for name in ("a.bin", "deep/b.bin", "deep/deeper/c.txt"):
        (tmp_path / "files" / name).write_bytes(name.encode() * 1000)
    return tmp_path / "files"


def change(path, at=2000):
    """A block in the middle becomes another; the size stays, and so does the time of modification."""
    before = path.stat()
    with open(path, "r+b") as handle:
        handle.seek(at)
        handle.write(b"other")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_files_are_read_once(folder, cache):
    first = path_content(folder)
    assert sorted(cache) == ["a.bin", "b.bin", "c.txt"]
    assert path_content(folder) == first and len(cache) == 3
    (folder / "new.bin").write_bytes(b"new")
    assert path_content(folder) != first and cache[3:] == ["new.bin"]


@pytest.mark.parametrize("name", ["a.bin", "deep/b.bin", "deep/deeper/c.txt"])
def test_every_byte_of_every_file_counts(folder, cache, name):
    """Of equal size, and with its old time of modification."""
    first = path_content(folder)
    change(folder / name)
    assert path_content(folder) != first


def test_a_file_put_in_the_place_of_another_is_read(folder, cache, tmp_path):
    """rsync -a and cp -p keep the time of modification; the inode is another one, or the time of change."""
    first, digest = path_content(folder), file_digests(folder, ["a.bin"])
    other = shutil.copy2(folder / "a.bin", tmp_path / "other")
    change(tmp_path / "other")
    os.replace(other, folder / "a.bin")
    assert path_content(folder) != first and file_digests(folder, ["a.bin"]) != digest


def test_a_name_counts_and_a_place_does_not(folder, cache, tmp_path, monkeypatch):
    first = path_content(folder)
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(moved)
    monkeypatch.chdir(tmp_path)
    assert path_content(moved) == path_content(tmp_path / "link") == path_content(located("files")) == first
    os.rename(moved / "a.bin", moved / "z.bin")
    assert path_content(moved) != first


def test_links_are_followed_and_hidden_files_and_notes_left_out(folder, cache, tmp_path):
    first = path_content(folder)
    for path in (folder / "README.md", folder / ".hidden", folder / "deep" / "Notes.MD"):
        path.write_text("words")
    (folder / "outputs").mkdir()
    (folder / "outputs" / "row.json").write_text("{}")
    (folder / "loop").symlink_to(folder)
    (folder / "nowhere").symlink_to(tmp_path / "nowhere")
    (folder / "itself").symlink_to(folder / "itself")
    os.mkfifo(folder / "pipe")
    assert path_content(folder, without=folder / "outputs") == first != path_content(folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "d.bin").write_bytes(b"d")
    (folder / "linked").symlink_to(tmp_path / "other")
    assert path_content(folder, without=folder / "outputs") != first


def test_what_was_written_just_now_is_read_again(folder, cache, monkeypatch):
    """It might be written again within the coarse clock of the file system."""
    monkeypatch.setattr(common.runtime.content, "SETTLED", 10**9 * 1000)
    path_content(folder)
    path_content(folder)
    assert len(cache) == 6


def test_blobs_of_the_hub_s_cache_have_their_digest_for_a_name(tmp_path, cache):
    blob = "0123456789abcdef" * 4
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / blob).write_bytes(b"gigabytes")
    (tmp_path / "snapshots" / "commit").mkdir(parents=True)
    (tmp_path / "snapshots" / "commit" / "weights").symlink_to(f"../../blobs/{blob}")
    assert file_digests(tmp_path / "snapshots" / "commit", ["weights"]) == [blob[:32]] and not cache


def test_long_reading_is_shown(folder, cache, capsys, monkeypatch):
    monkeypatch.setattr(common.runtime.content, "LONG", 0)
    path_content(folder)
    assert "reading files" in capsys.readouterr().err
    path_content(folder)
    assert not capsys.readouterr().err


def test_processes_do_not_spoil_each_other_s_cache(folder, tmp_path):
    code = "import common.runtime.content as c, sys; from pathlib import Path; print(c.path_content(Path(sys.argv[1])))"
    environment = os.environ | {"BONSAI_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code, str(folder)]
    started = [subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert {each.communicate()[0].strip() for each in started} == {path_content(folder)}


def test_a_cache_that_cannot_be_written_or_read_costs_only_time(folder, cache, tmp_path, monkeypatch):
    first = path_content(folder)
    for kept in (tmp_path / "cache" / "digests").iterdir():
        kept.write_text("{damaged")
    assert path_content(folder) == first
    (tmp_path / "file").touch()
    monkeypatch.setenv("BONSAI_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(common.runtime.content, "LONG", 0)
    assert path_content(folder) == first


def test_what_cannot_be_a_path_is_nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [located(path) for path in ("", "a" * 5000, "nul\0", "~nobody/x", "owner/name")] == [None] * 5
    assert located(".") and located("data/emoji").is_dir()


def test_a_file_that_is_gone_is_named(folder, cache):
    with pytest.raises(InputError, match=r"nothing\.bin is not there any more"):
        file_digests(folder, ["nothing.bin"])


def test_results_are_kept_while_files_stay_as_they_are(folder):
    loaded = []

    @while_unchanged
    def load(folder, split):
        loaded.append(split)
        return len(loaded)

    assert [load(folder, "train"), load(str(folder), split="test"), load(folder, "train")] == [1, 2, 1]
    change(folder / "deep" / "b.bin")
    assert load(folder, "train") == 3 and load(folder, "train") == 3
    assert load("/nowhere", "train") == 4
