"""Who a process is, from what torchrun, Slurm and submitit tell it; and what it does without any of them."""

import pytest

from common.errors import InputError
from common.runtime import collectives, processes

SLURM = {
    "SLURM_PROCID": "11",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_LOCALID": "3",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_NODEID": "1",
    "SLURM_JOB_ID": "4123456",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
}


@pytest.fixture
def environment(monkeypatch):
    """The variables of os.environ, without any of a starter."""
    known = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT", *SLURM}
    variables = {name: value for name, value in processes.os.environ.items() if name not in known}
    monkeypatch.setattr(processes.os, "environ", variables)
    return variables


def test_alone_without_a_starter(environment):
    assert (processes.process_count(), processes.rank(), processes.on_this_machine()) == (1, 0, (0, 1))
    assert processes.is_first() and collectives.reports_the_end() and collectives.all_failed(0)
    assert collectives.shared_out([1, 2, 3], lambda item: item * item) == [1, 4, 9]
    assert collectives.on_first(lambda: "found") == "found"
    processes.refuse_others("a command")
    collectives.barrier()


def test_a_step_of_slurm_speaks_as_torchrun(environment):
    environment |= SLURM
    assert (processes.process_count(), processes.rank(), processes.on_this_machine()) == (16, 11, (3, 8))
    assert environment["GROUP_RANK"] == "1"
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("gpu03", "23456")
    with pytest.raises(InputError, match="runs in one process, and 16 were started"):
        processes.refuse_others("a command")


def test_a_batch_script_of_slurm_is_one_process(environment):
    environment |= {name: value for name, value in SLURM.items() if "_STEP_" not in name} | {"SLURM_NTASKS": "16"}
    assert processes.process_count() == 1


def test_nodes_with_unequal_numbers_of_processes_are_told(environment):
    environment |= SLURM | {"SLURM_STEP_NUM_TASKS": "5"}
    with pytest.raises(InputError, match="5 processes on 2 nodes"):
        processes.process_count()


@pytest.fixture(autouse=True)
def matmul_precision():
    """What pick_device sets for CUDA is put back."""
    import torch

    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_each_process_takes_a_device_of_its_own(environment, monkeypatch):
    import torch

    environment |= {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", lambda *_, device: asked.append(device))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "set_device", asked.append)
    assert processes.pick_device("auto") == torch.device("cuda:3") and asked == ["cuda:3", "cuda:3"]
    assert processes.pick_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match="takes a device of its own; give device=cuda"):
        processes.pick_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="4 processes on a machine where each sees 1 CUDA devices"):
        processes.pick_device("cuda")


def test_alone_on_its_machine_a_process_still_names_its_device(environment, monkeypatch):
    """Several machines with one GPU each: NCCL and Lightning need the number."""
    import torch

    environment |= {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", lambda *_, device: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    assert processes.pick_device("auto") == torch.device("cuda:0")
    with pytest.raises(InputError, match="each of the 4 processes takes a device of its own"):
        processes.pick_device("cuda:0")
