"""What several processes share is computed once, and a killed holder blocks nobody."""

import multiprocessing
import time

import pytest
import torch

from common.errors import InputError
from common.runtime.locks import claimed, held, locked
from experiments.shared.tensor_cache import cached_tensors

FORK = multiprocessing.get_context("fork")


def compute_slowly(folder):
    def compute():
        with open(folder / "computed", "a") as log:
            log.write("x")
        time.sleep(0.3)
        return {"numbers": torch.arange(3)}

    assert cached_tensors(folder / "shared.safetensors", compute)["numbers"].tolist() == [0, 1, 2]


def hold(path):
    with locked(path, "work"):
        path.with_name("held").touch()
        time.sleep(60)


def write_shortly(folder):
    with claimed(folder):
        (folder / "held").touch()
        time.sleep(0.3)
        (folder / "written").touch()


def wait_for(path, limit=30):
    deadline = time.monotonic() + limit
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_two_processes_compute_once(tmp_path):
    processes = [FORK.Process(target=compute_slowly, args=(tmp_path,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert (tmp_path / "computed").read_text() == "x"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["computed", "shared.safetensors"]


def test_a_killed_holder_blocks_nobody(tmp_path):
    holder = FORK.Process(target=hold, args=(tmp_path / "a.lock",))
    holder.start()
    wait_for(tmp_path / "held")
    holder.kill()
    holder.join(30)
    with locked(tmp_path / "a.lock", "work"):
        pass


def test_a_folder_that_is_being_written_is_told(tmp_path):
    holder = FORK.Process(target=hold, args=(tmp_path / ".lock",))
    holder.start()
    wait_for(tmp_path / "held")
    try:
        with pytest.raises(InputError, match="Another process is writing"), claimed(tmp_path):
            pass
    finally:
        holder.kill()
        holder.join(30)
    with claimed(tmp_path):
        pass
    assert not (tmp_path / ".lock").exists()


def test_a_folder_can_be_waited_for(tmp_path, capsys):
    holder = FORK.Process(target=write_shortly, args=(tmp_path,))
    holder.start()
    wait_for(tmp_path / "held")
    with claimed(tmp_path, wait=True):
        assert (tmp_path / "written").exists()
    holder.join(30)
    assert f"waiting for another process: {tmp_path} is being written" in capsys.readouterr().err
    assert not (tmp_path / ".lock").exists()


def test_a_lock_is_held_until_its_holder_lets_go(tmp_path):
    lock = held(tmp_path / "new" / ".lock", "it is running")
    with pytest.raises(InputError, match="it is running"):
        held(tmp_path / "new" / ".lock", "it is running")
    lock.release()
    held(tmp_path / "new" / ".lock", "it is running").release()
