"""Runs a LightningModule over a seeded stream of batches, resuming where a killed run stopped."""

import gc
import logging
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from diffusers.training_utils import EMAModel
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.plugins.io import TorchCheckpointIO

from common.errors import InputError, first_line
from common.runtime.collectives import on_first
from common.runtime.files import whole_file
from common.runtime.processes import is_first, on_this_machine, process_count
from common.runtime.progress import progress_bar
from common.runtime.signals import handlers_of_now
from common.training.batches import TensorRows, training_loader
from common.training.fsdp import shared_like, whole

# batches come from memory and are numbered (common/training/batches.py): no workers are needed, and resuming mid-epoch is exact
IRRELEVANT = (
    ".*(num_workers|treespec|many workers|not resumable|exists and is not empty|logging interval|Grad strides"
    "|broadcast_buffers).*"
)
PARTS_OF_A_CHECKPOINT = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "global_step")
UNFINISHED = ".*.ckpt.*.partial"  # what a kill leaves of a checkpoint
STRATEGIES = ("auto", "ddp", "fsdp")


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints of tensors and plain values, written whole or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with whole_file(Path(path)) as handle:
            torch.save(checkpoint, handle)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Mapped, not read: of the processes on a machine each would hold all of it. Nothing in it is run."""
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)


class ExponentialAverage(L.Callback):
    """Keeps diffusers' EMAModel of one network, saved and restored with every checkpoint.

    `ema` follows `network` after each optimiser step with decay min(decay, (1 + step) / (10 + step)).
    """

    def __init__(self, network: torch.nn.Module, decay: float):
        self.ema = EMAModel(network.parameters(), decay=decay, use_ema_warmup=False, foreach=True)
        self.network = network

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.place(pl_module.device)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step > self.ema.optimization_step:
            self.ema.step(self.network.parameters())

    def state_dict(self) -> dict[str, Any]:
        state = self.ema.state_dict()
        averages = (whole(average).cpu() for average in state["shadow_params"])  # all processes gather each
        return state | {"shadow_params": [average for average in averages if is_first()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ema.load_state_dict(state)
        self.place(next(self.network.parameters()).device)  # FSDP's strategy restores after on_fit_start

    def place(self, device: torch.device) -> None:
        """Averages on `device`, each cut as its weight is."""
        self.ema.to(device)
        pairs = zip(self.ema.shadow_params, self.network.parameters(), strict=True)
        self.ema.shadow_params = [shared_like(average, weight) for average, weight in pairs]

    def copy_to_network(self, network: torch.nn.Module | None = None) -> None:
        """Puts the averaged weights into the network, or another one like it, for good."""
        self.ema.shadow_params = [whole(average) for average in self.ema.shadow_params]
        self.ema.copy_to((network or self.network).parameters())


class TrainingProgress(L.Callback):
    """The progress bar of a training run: optimiser steps, time left and the current loss."""

    def __init__(self, description: str):
        self.description = description

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seen = trainer.global_step
        self.bar = progress_bar(self.description, trainer.max_steps, done=self.seen)
        self.counter = self.bar.__enter__()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any) -> None:
        if trainer.global_step > self.seen:
            loss = trainer.callback_metrics.get("loss")
            self.counter.advance(trainer.global_step - self.seen, None if loss is None else f"loss {float(loss):.4f}")
            self.seen = trainer.global_step

    def on_train_end(self, *args: Any) -> None:
        self.bar.__exit__(None, None, None)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if hasattr(self, "bar"):
            self.bar.__exit__(type(exception), exception, exception.__traceback__)


class OwnSignals(L.Callback):
    """Keeps signals as they were before Lightning took them over.

    At SIGTERM its handler ends a training with exit code 0, and with several processes waits for those that are computing.
    """

    def __init__(self) -> None:
        self.put_back = handlers_of_now()

    def on_train_start(self, *args: Any) -> None:
        self.put_back()


def last_checkpoint(folder: Path) -> tuple[Path | None, int]:
    """As latest_checkpoint, in a folder that is there afterwards, without older checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, done = latest_checkpoint(folder)
    for older in (*folder.glob("step=*.ckpt"), *folder.glob(UNFINISHED)):
        if older != checkpoint:
            older.unlink()
    return checkpoint, done


def latest_checkpoint(folder: Path) -> tuple[Path | None, int]:
    """The checkpoint with the most optimiser steps in `folder`, and that number; (None, 0) without one."""
    names = ((re.fullmatch(r"step=(\d+)", path.stem), path) for path in folder.glob("step=*.ckpt"))
    found = {int(name.group(1)): path for name, path in names if name}
    if not found:
        return None, 0
    return found[max(found)], max(found)


def check_checkpoint(path: Path, module: L.LightningModule) -> None:
    """InputError where the checkpoint is damaged, holds more than tensors and plain values, or is of another network."""
    from pickle import UnpicklingError
    from zipfile import is_zipfile

    try:
        if not is_zipfile(path):
            raise ValueError("it is no checkpoint")
        kept = torch.load(path, map_location="meta", mmap=True, weights_only=True)
        shapes = {name: tensor.shape for name, tensor in kept["state_dict"].items()}
        absent = next((name for name in PARTS_OF_A_CHECKPOINT if name not in kept), None)
        wrong = f"it lacks {absent}" if absent else None
    except UnpicklingError:
        wrong = "it holds more than tensors and plain values, of which nothing was run"
    except Exception as error:  # zip and torch each raise their own kind for a damaged file
        wrong = first_line(error)
    if wrong is None and shapes != {name: tensor.shape for name, tensor in module.state_dict().items()}:
        wrong = "it is of another network"
    if wrong is not None:
        raise InputError(f"The checkpoint {path} is damaged ({wrong}); delete it, and the training starts anew.")


def drop_checkpoints(folder: Path) -> None:
    """Deletes the checkpoints of trainings in `folder` and in the folders inside; their logs stay."""
    for path in (*folder.rglob("*.ckpt"), *folder.rglob(UNFINISHED)):
        path.unlink(missing_ok=True)


def parallel_settings(strategy: str) -> dict[str, Any]:
    """Lightning's arguments for the processes that are there; none for one process.

    strategy: "ddp" and "auto" keep the whole network in each process and average gradients; "fsdp" (FSDP2) gives each a part of
    every weight. Lightning's own processes are never started: whoever started this one has started them all.
    """
    if strategy not in STRATEGIES:
        raise InputError(f"distill.trainer.strategy={strategy!r} is none of {', '.join(STRATEGIES)}.")
    if process_count() == 1:
        return {}
    from lightning.fabric.plugins.environments import TorchElasticEnvironment
    from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, ParallelStrategy

    beside = on_this_machine()[1]
    if strategy == "fsdp":
        way: ParallelStrategy = ModelParallelStrategy(
            data_parallel_size=process_count(), tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    else:
        # broadcast_buffers: by its name in every version since 2.9; the view: gradients are held once, in what is averaged
        way = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    way.cluster_environment = TorchElasticEnvironment()
    return {"strategy": way, "devices": beside, "num_nodes": process_count() // beside}


def fit(
    module: L.LightningModule,
    rows: TensorRows,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    folder: Path,
    description: str,
    accumulate: int = 1,
    checkpoint_every: int = 500,
    trainer: dict[str, Any],
    callbacks: Sequence[L.Callback] = (),
    loggers: Sequence[Logger] = (),
) -> None:
    """Trains for `steps` optimiser steps of accumulate * batch_size samples.

    Checkpoints go to `folder` every `checkpoint_every` steps and at the end; an interrupted call, made again, goes on
    from the last one and ends with the weights of an uninterrupted run. Where several processes train, batch_size is of all
    together, each computes its part, and the result is that of one up to rounding. What the module logs is in
    <folder>/log/from_<step>/metrics.csv, one folder a start, and goes to `loggers`. `trainer` holds further arguments of
    lightning.Trainer (precision, devices, strategy, gradient_clip_val, ...).
    """
    checkpoint, done = on_first(lambda: last_checkpoint(folder))
    if checkpoint is not None:
        on_first(lambda: check_checkpoint(checkpoint, module))
    saver = ModelCheckpoint(
        dirpath=folder, filename="{step}", every_n_train_steps=checkpoint_every, save_top_k=1, save_on_exception=False
    )
    loader = training_loader(rows, batch_size, seed, steps * accumulate, start=done * accumulate)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=IRRELEVANT)
        runner = L.Trainer(
            max_steps=steps,
            accumulate_grad_batches=accumulate,
            logger=[CSVLogger(folder, name="log", version=f"from_{done}"), *loggers],
            plugins=[WholeCheckpoints()],
            callbacks=[OwnSignals(), *callbacks, TrainingProgress(description), saver],
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            **{"log_every_n_steps": 10, **trainer},
        )
        device = next(module.parameters()).device
        runner.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
    if done < steps:
        runner.save_checkpoint(folder / f"step={steps}.ckpt")
    module.to(device)  # Lightning leaves it on the CPU
    module.trainer = None
    del runner
    gc.collect()  # of cycles, which hold the optimiser's state
