"""Rows in mapped shards: equal to the columns, resumed, shared between processes, damage found, little memory."""

import hashlib
import multiprocessing
import os
import subprocess
import time

import numpy as np
import pytest
import torch

from common.data.shards import ShardedColumn, fill_shards, list_shards, open_columns, unsound
from common.errors import InputError
from common.training.batches import MirroredRows, TensorRows

FORK = multiprocessing.get_context("fork")


def columns_of(count):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(count, 4, 3, 3, generator=generator)
    return {"latents": latents, "states": latents.flatten(1).double().cumsum(1).half(), "ids": torch.arange(count)}


def computing(columns, log):
    def compute(rows):
        log.append((rows.start, rows.stop))
        return {name: column[rows.start : rows.stop] for name, column in columns.items()}

    return compute


def fill(folder, columns, rows_per_shard, log, verify=True, compute=None):
    shards = list_shards(folder, len(columns["ids"]), rows_per_shard)
    fill_shards(unsound(shards, verify), compute or computing(columns, log))
    return shards


@pytest.mark.parametrize("rows_per_shard", [1, 4, 10, 64])
def test_rows_are_those_of_the_columns(tmp_path, rows_per_shard):
    columns, log = columns_of(10), []
    shards = fill(tmp_path, columns, rows_per_shard, log)
    assert [row for start, stop in log for row in range(start, stop)] == list(range(10))
    found = open_columns(shards)
    assert set(found) == set(columns)
    for rows in ([9, 0, 4, 4, 3], list(range(10)), [7]):
        for name, column in columns.items():
            part = found[name][torch.tensor(rows)]
            assert torch.equal(part, column[rows].float() if name == "states" else column[rows])
            assert part.dtype == (torch.int64 if name == "ids" else torch.float32)
            assert len(found[name]) == 10 and found[name].shape == column.shape
    pairs = [(3, 0), (9, 1)]
    batch, wanted = TensorRows(**found).__getitems__(pairs), TensorRows(**columns).__getitems__(pairs)
    assert torch.equal(batch["latents"], wanted["latents"]) and batch["position"].tolist() == [0, 1]


def test_what_an_interrupted_run_has_written_is_kept(tmp_path):
    columns, log = columns_of(10), []
    working = computing(columns, log)

    def interrupted(rows):
        if rows.start == 6:
            raise KeyboardInterrupt
        return working(rows)

    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, columns, 3, log, compute=interrupted)
    assert log == [(0, 3), (3, 6)]
    shards = fill(tmp_path, columns, 3, log)
    assert log[2:] == [(6, 9), (9, 10)]
    assert not unsound(shards, verify=True) and fill(tmp_path, columns, 3, log) and len(log) == 4
    assert torch.equal(open_columns(shards)["ids"][list(range(10))], columns["ids"])
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {f"{number:05d}.{kind}" for number in range(4) for kind in ("safetensors", "sha256")}


def test_checksums_are_those_of_sha256sum(tmp_path):
    shards = fill(tmp_path, columns_of(5), 2, [])
    for shard in shards:
        assert shard.checksum.read_text().split()[0] == hashlib.sha256(shard.path.read_bytes()).hexdigest()
    names = [shard.checksum.name for shard in shards]
    assert subprocess.run(["sha256sum", "--check", "--strict", *names], cwd=tmp_path, capture_output=True).returncode == 0


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_damaged_shard_is_told_and_computed_anew(tmp_path, capsys):
    columns, log = columns_of(10), []
    shards = fill(tmp_path, columns, 3, log)
    flip_a_bit(shards[1].path)
    shards[2].path.write_bytes(shards[2].path.read_bytes()[:100])
    assert unsound(shards, verify=False) == []
    assert unsound(shards, verify=True) == shards[1:3]
    log.clear()
    fill(tmp_path, columns, 3, log)
    assert log == [(3, 6), (6, 9)]
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if "is damaged" in line] == [
        f"{shard.path} is damaged (its checksum differs): it is computed anew" for shard in shards[1:3]
    ]
    assert torch.equal(open_columns(shards)["latents"][list(range(10))], columns["latents"])
    shards[0].path.write_bytes(b"")
    with pytest.raises(InputError, match=r"00000\.safetensors is damaged"):
        open_columns(shards)
    shards[3].path.unlink()
    assert unsound(shards, verify=False) == [shards[3]]


def fill_slowly(folder, number):
    def compute(rows):
        with open(folder / f"log{number}", "a") as log:
            log.write(f"{rows.start}\n")
        time.sleep(0.1)
        return {"ids": torch.arange(rows.start, rows.stop)}

    counted = []
    shards = list_shards(folder / "rows", 20, 2)
    fill_shards(unsound(shards, True), compute, counted.append)
    assert torch.equal(open_columns(shards)["ids"][list(range(20))], torch.arange(20))


def test_two_processes_share_the_shards(tmp_path):
    processes = [FORK.Process(target=fill_slowly, args=(tmp_path, number)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    logs = [(tmp_path / f"log{number}").read_text().split() for number in range(2)]
    assert min(map(len, logs)) >= 2 and sorted(int(start) for log in logs for start in log) == list(range(0, 20, 2))
    assert not list((tmp_path / "rows").glob(".*"))


def test_a_killed_process_leaves_its_shard_to_others(tmp_path):
    process = FORK.Process(target=fill_slowly, args=(tmp_path, 0))
    process.start()
    deadline = time.monotonic() + 30
    while not (tmp_path / "rows" / "00001.sha256").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.join(30)
    fill_slowly(tmp_path, 1)
    starts = [int(start) for start in (tmp_path / "log1").read_text().split()]
    assert starts and starts[0] >= 4 and 18 in starts


def private_kilobytes():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's /proc")
def test_reading_takes_no_memory_that_grows_with_the_rows(tmp_path):
    def compute(rows):
        return {"states": torch.full((len(rows), 16, 512), rows.start, dtype=torch.float16)}

    shards = list_shards(tmp_path, 4096, 512)  # 64 MB
    fill_shards(unsound(shards, True), compute)
    column = open_columns(shards)["states"]
    order = torch.randperm(4096, generator=torch.Generator().manual_seed(0)).split(32)
    column[order[0]]
    before = private_kilobytes()
    for rows in order:
        assert torch.equal(column[rows][:, 5, 7], (rows // 512 * 512).float())
    assert sum(shard.path.stat().st_size for shard in shards) > 64 * 2**20
    assert private_kilobytes() - before < 8 * 1024


def test_mirrored_rows_are_drawn_by_position():
    count = 2000
    latents, mirrored = torch.arange(count).float()[:, None], -torch.arange(count).float()[:, None]
    rows = MirroredRows(mirrored, 3, latents=latents, states=torch.arange(count) * 10)
    pairs = [(index, 7 * index) for index in range(1, count)]
    batch = rows.__getitems__(pairs)
    assert torch.equal(batch["states"], torch.arange(1, count) * 10)
    assert torch.equal(batch["latents"].abs()[:, 0], torch.arange(1, count).float())
    flipped = (batch["latents"][:, 0] < 0).tolist()
    assert abs(np.mean(flipped) - 0.5) < 0.04
    parts = [*rows.__getitems__(pairs[:5])["latents"], *rows.__getitems__(pairs[5:49])["latents"]]
    assert torch.equal(torch.stack(parts), batch["latents"][:49])  # batches of another size: the same coins
    again = rows.__getitems__([(index, position + 1) for index, position in pairs])["latents"][:, 0] < 0
    assert 0.4 < np.mean(again.numpy() == flipped) < 0.6
    assert latents[5] == 5 and mirrored[5] == -5  # nothing is written to the columns
    assert ((MirroredRows(mirrored, 4, latents=latents).__getitems__(pairs)["latents"][:, 0] < 0).numpy() != flipped).any()


def test_a_column_is_mapped(tmp_path):
    assert isinstance(open_columns(fill(tmp_path, columns_of(2), 5, []))["ids"], ShardedColumn)
