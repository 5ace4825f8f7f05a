"""The processes that run one job together: which of them this one is, and its device (collectives.py: what they share).

They are started by torchrun, by Slurm's srun, or by submitit (Hydra's launcher), and each runs the same code on the same
settings. Work is shared out in pieces that do not depend on how many processes there are, so that results are equal. The first
process alone draws bars, prints and writes the job's result; a piece of a cache is written by the one that computed it. Without
such a starter there is one process, and nothing here costs anything. All of them must see the same folder of outputs.
"""

import os
from typing import TYPE_CHECKING

from common.errors import InputError, first_line

if TYPE_CHECKING:
    import torch


# The names that torchrun gives who is who, and "nodes" and "job", by those of other starters of processes; under Slurm those
# of a step: a batch script has the others too, and is one process.
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "nodes", "GROUP_RANK", "job")
SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_NUM_NODES", "SLURM_NODEID", "SLURM_JOB_ID")
SUBMITIT = [f"SUBMITIT_LOCAL_{name}" for name in ("GLOBALID", "NTASKS", "LOCALID", "JOB_NUM_NODES", "NODEID", "JOB_ID")]


def adopt_environment() -> None:
    """Gives what Slurm or submitit say of the processes the names that torchrun uses, which PyTorch and Lightning read."""
    if "RANK" in os.environ:
        return
    starter = next((each for each in (SUBMITIT, SLURM) if each[1] in os.environ), None)
    if starter is None or int(os.environ[starter[1]]) == 1:
        return
    found = {name: os.environ[variable] for name, variable in zip(NAMES, starter, strict=True)}
    count, nodes, job = int(found["WORLD_SIZE"]), int(found.pop("nodes")), int(found.pop("job"))
    if count % nodes:
        raise InputError(f"{count} processes on {nodes} nodes: each node must run as many as the others (--ntasks-per-node).")
    os.environ |= found | {"LOCAL_WORLD_SIZE": str(count // nodes)}
    os.environ.setdefault("MASTER_PORT", str(20000 + job % 10000))  # equal for all, other for each job
    if "MASTER_ADDR" not in os.environ:
        from lightning.fabric.plugins.environments import SLURMEnvironment

        first_host = SLURMEnvironment.resolve_root_node_address  # of Slurm's list: "gpu[03-07,12],big1" begins with gpu03
        os.environ["MASTER_ADDR"] = first_host(os.environ["SLURM_STEP_NODELIST"]) if starter is SLURM else "127.0.0.1"


def process_count() -> int:
    """How many processes run this job."""
    adopt_environment()
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """The number of this process among them, from 0."""
    adopt_environment()
    return int(os.environ.get("RANK", 0))


def is_first() -> bool:
    """Whether this process is the one that prints, and writes what is not shared out."""
    return rank() == 0


def on_this_machine() -> tuple[int, int]:
    """The number of this process among those on its machine, and how many they are."""
    adopt_environment()
    return int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def pick_device(name: str) -> "torch.device":
    """The device that is asked for, made the current one: "auto" takes CUDA where there is one, each process one of its own.

    On CUDA products of float32 matrices are taken in TF32 from here on.
    """
    import torch

    local, beside = on_this_machine()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if process_count() > 1 and name.startswith("cuda:"):
        raise InputError(f"device={name}: each of the {process_count()} processes takes a device of its own; give device=cuda.")
    if process_count() > 1 and name == "cuda":
        if torch.cuda.device_count() < beside:
            raise InputError(
                f"{beside} processes on a machine where each sees {torch.cuda.device_count()} CUDA devices: start one for each "
                "device (under Slurm ask for gpus_per_node, not gpus_per_task)."
            )
        name = f"cuda:{local}"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={name!r} cannot be used here: {first_line(error)}") from error
    if name.startswith("cuda"):
        torch.cuda.set_device(name if ":" in name else 0)  # what is not told which device waits for this one
        torch.set_float32_matmul_precision("high")  # TF32, as cuDNN's convolutions have by default
    return torch.device(name)


def refuse_others(command: str) -> None:
    """InputError where several processes were started for a command that is made for one."""
    if process_count() > 1:
        raise InputError(f"{command} runs in one process, and {process_count()} were started; start it with python.")


def check_shares(batch_size: int, name: str) -> None:
    """InputError where a batch cannot be cut into a part of equal size for each process."""
    count = process_count()
    if batch_size % count:
        near = [size for size in (batch_size // count * count, -(-batch_size // count) * count) if size]
        raise InputError(f"{name}={batch_size} is no multiple of the {count} processes; {' or '.join(map(str, near))} is.")
