"""Checkpoints: nothing in them is run, a damaged one is named, a full disk is told, and their folder can be tidied."""

import errno
import os
import pickle
import resource
from contextlib import contextmanager

import lightning as L
import pytest
import torch

from common.errors import InputError
from common.training.batches import TensorRows
from common.training.fit import drop_checkpoints, fit, latest_checkpoint
from experiments.shared.command_line import explain


class Line(L.LightningModule):
    """y = w x, towards 0."""

    def __init__(self, width=4):
        super().__init__()
        self.layer = torch.nn.Linear(width, width)

    def training_step(self, batch, index):
        loss = self.layer(batch["x"][:, : self.layer.in_features]).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)]


def train(folder, steps, width=4):
    torch.manual_seed(0)
    module = Line(width)
    rows = TensorRows(x=torch.randn(16, 512, generator=torch.Generator().manual_seed(1)))
    settings = {"accelerator": "cpu", "precision": "32-true", "log_every_n_steps": 1}
    fit(
        module,
        rows,
        steps=steps,
        batch_size=4,
        seed=0,
        folder=folder,
        description="a line",
        checkpoint_every=2,
        trainer=settings,
    )
    return module.layer.weight


@pytest.fixture
def begun(tmp_path):
    train(tmp_path, 4)
    return tmp_path


def test_a_training_goes_on_from_its_checkpoint(begun, tmp_path_factory):
    assert torch.equal(train(begun, 8), train(tmp_path_factory.mktemp("whole"), 8))


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_nothing_in_a_checkpoint_is_run(begun):
    path, _ = latest_checkpoint(begun)
    kept = torch.load(path, weights_only=True)
    torch.save({**kept, "extra": Payload(begun / "ran")}, path)
    with pytest.raises(InputError, match=r"step=4\.ckpt is damaged \(it holds more than tensors and plain values"):
        train(begun, 8)
    path.write_bytes(pickle.dumps(Payload(begun / "ran")))
    with pytest.raises(InputError, match=r"step=4\.ckpt is damaged \(it is no checkpoint\)"):
        train(begun, 8)
    assert not (begun / "ran").exists()


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path):
    path.write_bytes(b"")


def of_other_parts(path):
    torch.save({"state_dict": {}}, path)


def a_list(path):
    torch.save([1, 2], path)


@pytest.mark.parametrize("damage", [truncated, emptied, of_other_parts, a_list])
def test_a_damaged_checkpoint_is_named_with_the_remedy(begun, damage):
    path, _ = latest_checkpoint(begun)
    damage(path)
    with pytest.raises(InputError, match=r"step=4\.ckpt is damaged .*; delete it, and the training starts anew\.$") as told:
        train(begun, 8)
    assert "\n" not in str(told.value)


def test_a_checkpoint_of_another_network_is_named(begun):
    with pytest.raises(InputError, match=r"step=4\.ckpt is damaged \(it is of another network\)"):
        train(begun, 8, width=5)


def test_files_of_other_names_are_left_alone(begun):
    (begun / "step=4-copy.ckpt").write_bytes(b"")
    assert latest_checkpoint(begun)[0].name == "step=4.ckpt"


def test_checkpoints_go_and_the_log_stays(begun):
    (begun / "autoencoder").mkdir()
    (begun / "autoencoder" / "step=2.ckpt").touch()
    (begun / ".step=6.ckpt.host.77.partial").touch()  # of a kill
    drop_checkpoints(begun)
    assert not [path for path in begun.rglob("*") if "ckpt" in path.name]
    assert list(begun.glob("log/from_0/metrics.csv"))


@contextmanager
def files_of_at_most(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_the_system_refuses_of_a_checkpoint_is_one_line_with_its_name(tmp_path):
    """torch.save makes a RuntimeError about its archive of it."""
    with files_of_at_most(100_000), pytest.raises(OSError) as refused:
        train(tmp_path, 4, width=200)
    assert explain(refused.value).startswith(f"File too large: {tmp_path}/step=2.ckpt; ")
    assert not list(tmp_path.glob("*.ckpt*")) and not list(tmp_path.glob(".*"))


def test_a_full_disk_in_a_checkpoint_is_told_with_its_name(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as refused:
        train(tmp_path, 4)
    told = f"No space left on device: {tmp_path}/step=2.ckpt; free some; the same command then goes on from here"
    assert explain(refused.value) == told
