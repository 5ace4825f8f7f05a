"""The processes that run one job together: which of them this one is, what it does of shared work, who writes and speaks.

They are started by torchrun, by Slurm's srun, or by submitit (Hydra's launcher), and each runs the same code on the same
settings. Work is shared out in pieces that do not depend on how many processes there are, so that results are equal. The first
process alone draws bars, prints and writes the job's result; a piece of a cache is written by the one that computed it. Without
such a starter there is one process, and nothing here costs anything. All of them must see the same folder of outputs.
"""

import atexit
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from common.errors import InputError, first_line

Result = TypeVar("Result")
Item = TypeVar("Item")
PATIENCE = timedelta(days=2)  # the others wait while the first one downloads, encodes or measures
OF_A_STEP = timedelta(hours=2)  # in training nobody waits for long, and a process that has died is to be noticed


@dataclass(frozen=True)
class Starter:
    """The environment variables in which a starter of processes says who is who."""

    rank: str
    count: str
    local_rank: str
    nodes: str
    node: str
    job: str


# under Slurm the variables of a step: a batch script has the others too, and is one process
SLURM = Starter("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_NUM_NODES", "SLURM_NODEID", "SLURM_JOB_ID")
SUBMITIT = Starter(
    *(f"SUBMITIT_LOCAL_{name}" for name in ("GLOBALID", "NTASKS", "LOCALID", "JOB_NUM_NODES", "NODEID", "JOB_ID"))
)


def adopt_environment() -> None:
    """Gives what Slurm or submitit say of the processes the names that torchrun uses, which PyTorch and Lightning read."""
    if "RANK" in os.environ:
        return
    starter = next((each for each in (SUBMITIT, SLURM) if each.count in os.environ), None)
    if starter is None or int(os.environ[starter.count]) == 1:
        return
    count, nodes = int(os.environ[starter.count]), int(os.environ[starter.nodes])
    if count % nodes:
        raise InputError(f"{count} processes on {nodes} nodes: each node must run as many as the others (--ntasks-per-node).")
    os.environ |= {
        "RANK": os.environ[starter.rank],
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": os.environ[starter.local_rank],
        "LOCAL_WORLD_SIZE": str(count // nodes),
        "GROUP_RANK": os.environ[starter.node],
    }
    os.environ.setdefault("MASTER_PORT", str(20000 + int(os.environ[starter.job]) % 10000))  # equal for all, other for each job
    if "MASTER_ADDR" not in os.environ:
        os.environ["MASTER_ADDR"] = first_host(os.environ["SLURM_STEP_NODELIST"]) if starter is SLURM else "127.0.0.1"


def first_host(nodes: str) -> str:
    """The first host of Slurm's list: "gpu[03-07,12],big1" begins with gpu03."""
    from lightning.fabric.plugins.environments import SLURMEnvironment

    return SLURMEnvironment.resolve_root_node_address(nodes)


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


def pick_device(name: str) -> str:
    """The device of cfg.device: "auto" takes CUDA where there is one, and each process a device of its own."""
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
    return name


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


class Group:
    """The connection of the processes, once for the life of this one; None in `joined` until then."""

    joined: "Group | None" = None

    def __init__(self, device: str):
        from torch import distributed

        backend = "nccl" if device.startswith("cuda") else "gloo"
        self.store, *_ = next(iter(distributed.rendezvous("env://", rank(), process_count(), timeout=timedelta(minutes=10))))
        settings = {"store": distributed.PrefixStore("job", self.store), "rank": rank(), "world_size": process_count()}
        distributed.init_process_group(backend, **settings, timeout=OF_A_STEP)
        self.objects = distributed.new_group(backend="gloo", timeout=PATIENCE)  # for what is not on a device
        atexit.register(distributed.destroy_process_group)


def join(device: str) -> None:
    """Connects the processes that were started together, by NCCL on CUDA devices and else by gloo; does so once."""
    if process_count() > 1 and Group.joined is None:
        Group.joined = Group(device)


def barrier() -> None:
    """Waits until all processes are here."""
    if Group.joined is not None:
        from torch import distributed

        distributed.barrier(group=Group.joined.objects)


def on_first(compute: Callable[[], Result]) -> Result:
    """What `compute` returns in the first process, in all of them; they all raise what it raises."""
    if Group.joined is None:
        return compute()
    from torch import distributed

    told: list[Any] = [None, None]
    if is_first():
        try:
            told = [compute(), None]
        except Exception as error:
            distributed.broadcast_object_list([None, sendable(error)], src=0, group=Group.joined.objects)
            raise
    distributed.broadcast_object_list(told, src=0, group=Group.joined.objects)
    if told[1] is not None:
        raise told[1]
    return told[0]


def sendable(error: Exception) -> Exception:
    """The error as another process can receive it."""
    return InputError(str(error)) if isinstance(error, InputError) else RuntimeError(f"{type(error).__name__}: {error}")


@contextmanager
def first_enters(context: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """The first process is inside `context()`, for all; an error on the way in reaches all."""
    with ExitStack() as stack:
        on_first(lambda: stack.enter_context(context()) and None)
        yield


def shared_out(items: Sequence[Item], compute: Callable[[Item], Result]) -> list[Result]:
    """compute(item) for each item, in order, in all processes; each of them computes every n-th one.

    A process may have no item: `compute` must not do what all have to do together (on_first, barrier, shared_out).
    """
    if Group.joined is None:
        return [compute(item) for item in items]
    from torch import distributed

    count = process_count()
    own = [compute(item) for item in items[rank() :: count]]
    parts: list[Any] = [None] * count
    distributed.all_gather_object(parts, own, group=Group.joined.objects)
    return [parts[place % count][place // count] for place in range(len(items))]


def mean_over_processes(values: Any) -> Any:
    """The mean over all processes of a tensor without gradient, elementwise; each holds an equal part of the batch."""
    if Group.joined is None:
        return values
    from torch import distributed

    total = values.detach().clone()
    distributed.all_reduce(total)
    return total / process_count()


def whole_batch(part: Any) -> Any:
    """The tensors (rows, ...) of all processes one after the other, with gradient to each one's own part.

    Each process takes the loss over the whole; the mean of their gradients, which training takes, is that of one process.
    """
    if Group.joined is None:
        return part
    import torch
    from torch.distributed.nn import functional

    return torch.cat(functional.all_gather(part.contiguous()))


def speaks(job: int = 0) -> bool:
    """Whether this process is to tell why job number `job` ends: the first one that asks, for all of them."""
    if process_count() == 1:
        return True
    if Group.joined is None:
        return is_first()
    try:
        if Group.joined.store.add(f"spoken {job}", 1) == 1:
            return True
    except RuntimeError:  # whoever held the store has ended, and had the first word
        return False
    time.sleep(1)  # lets the other one speak before this one's end ends it
    return False


def all_failed(job: int, seconds: float = 60) -> bool:
    """Whether every process comes here within `seconds`, told by the number of the job: then they can go on together."""
    if Group.joined is None:
        return True  # what comes before does not depend on the process
    store, key = Group.joined.store, f"failed {job}"
    deadline = time.monotonic() + seconds
    store.add(key, 1)
    while store.add(key, 0) < process_count():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
