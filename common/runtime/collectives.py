"""What the processes of one job do together: wait, tell each other, share work out, compute over all of a batch.

Every process of the job must come to these calls in the same order (but reports_the_end and all_failed, which are for their
end). With one process they do nothing, or the obvious.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from common.errors import InputError
from common.runtime.processes import is_first, process_count, rank

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")
Item = TypeVar("Item")
PATIENCE = timedelta(days=2)  # the others wait while the first one downloads, encodes or measures
OF_A_STEP = timedelta(hours=2)  # in training nobody waits for long, and a process that has died is to be noticed


class Group:
    """The connection of the processes, once for the life of this one; None in `joined` until then."""

    joined: "Group | None" = None

    def __init__(self, device: "torch.device"):
        from torch import distributed

        backend = "nccl" if device.type == "cuda" else "gloo"
        self.store, *_ = next(iter(distributed.rendezvous("env://", rank(), process_count(), timeout=timedelta(minutes=10))))
        settings = {"store": distributed.PrefixStore("job", self.store), "rank": rank(), "world_size": process_count()}
        distributed.init_process_group(backend, **settings, timeout=OF_A_STEP)
        self.objects = distributed.new_group(backend="gloo", timeout=PATIENCE)  # for what is not on a device


def join(device: "torch.device") -> None:
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


def reports_the_end(job: int = 0) -> bool:
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
