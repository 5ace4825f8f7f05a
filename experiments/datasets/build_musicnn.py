"""Builds data/musicnn: musicnn's weights as safetensors, read from its TensorFlow checkpoint without TensorFlow.

    pip download --no-deps musicnn==0.1.0 && unzip musicnn-0.1.0-*.whl   # or unpack its .tar.gz
    python -m experiments.datasets.build_musicnn --package musicnn --out data/musicnn

A checkpoint is a table of names (LevelDB's format) whose values say where in the data file a tensor lies.
"""

import argparse
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from common.metrics.musicnn import MusicNN

MODEL = "MTT_musicnn"  # trained on MagnaTagATune
FLOAT32 = 1  # TensorFlow's number of the type
LAYERS = {  # of common.metrics.musicnn.MusicNN: number of the convolution, and of the normalisation
    **{f"front.{index}": (index, index + 1) for index in range(5)},
    **{f"middle.{index}": (index + 5, index + 6) for index in range(3)},
}


def read_number(data: bytes, place: int) -> tuple[int, int]:
    """A number of variable length (protocol buffers' varint), and the place behind it."""
    number = shift = 0
    while True:
        byte = data[place]
        place += 1
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number, place


def read_block(table: bytes, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of one block; a key is stored as what differs from the key before."""
    data = table[start : start + size]
    end = size - 4 - 4 * struct.unpack("<I", data[-4:])[0]
    place, key = 0, b""
    while place < end:
        shared, place = read_number(data, place)
        length, place = read_number(data, place)
        value_length, place = read_number(data, place)
        key = key[:shared] + data[place : place + length]
        place += length
        yield key, data[place : place + value_length]
        place += value_length


def read_message(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of the fields of a protocol buffer."""
    place = 0
    while place < len(data):
        tag, place = read_number(data, place)
        if tag & 7 == 0:
            value, place = read_number(data, place)
        else:
            length, place = (4, place) if tag & 7 == 5 else read_number(data, place)
            value, place = data[place : place + length], place + length
        yield tag >> 3, value


def read_checkpoint(folder: Path) -> dict[str, np.ndarray]:
    """The float32 tensors of a checkpoint by name."""
    table, data = (folder / ".index").read_bytes(), (folder / ".data-00000-of-00001").read_bytes()
    footer, place, handle = table[-48:], 0, [0] * 4  # place and size of the list of lists, then of the list of blocks
    for index in range(4):
        handle[index], place = read_number(footer, place)
    tensors = {}
    for _, block in read_block(table, handle[2], handle[3]):
        start, place = read_number(block, 0)
        for key, value in read_block(table, start, read_number(block, place)[0]):
            entry = dict(read_message(value))
            if not key or entry.get(1) != FLOAT32:
                continue
            shape = [dict(read_message(size))[1] for number, size in read_message(entry.get(2, b"")) if number == 2]
            offset = entry.get(4, 0)
            tensors[key.decode()] = np.frombuffer(data[offset : offset + entry[5]], "<f4").reshape(shape)
    return tensors


def convert(tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The state of common.metrics.musicnn.MusicNN."""
    state: dict[str, np.ndarray] = {}

    def norm(target: str, number: int) -> None:
        source = f"batch_normalization_{number}" if number else "batch_normalization"
        names = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
        state.update({f"{target}.{ours}": tensors[f"{source}/{theirs}"] for ours, theirs in names.items()})

    norm("norm", 0)
    for target, (convolution, normalisation) in LAYERS.items():
        source = f"conv2d_{convolution}" if convolution else "conv2d"
        kernel = tensors[f"{source}/kernel"].transpose(3, 2, 0, 1)  # filters, 1, frames, mels or channels
        state[f"{target}.conv.weight"] = kernel if target.startswith("front") else kernel[:, 0].transpose(0, 2, 1)
        state[f"{target}.conv.bias"] = tensors[f"{source}/bias"]
        norm(f"{target}.norm", normalisation)
    norm("pooled_norm", 9)
    state |= {"dense.weight": tensors["dense/kernel"].T, "dense.bias": tensors["dense/bias"]}
    norm("dense_norm", 10)
    return {name: torch.from_numpy(value.copy()).half() for name, value in state.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, required=True, help="the folder musicnn of the unpacked package")
    parser.add_argument("--out", type=Path, default=Path("data/musicnn"))
    arguments = parser.parse_args()
    if not (arguments.package / MODEL / ".index").is_file():
        raise SystemExit(f"build_musicnn: {arguments.package} has no {MODEL}/.index; unpack PyPI's musicnn 0.1.0 there.")
    state = convert(read_checkpoint(arguments.package / MODEL))
    missing = set(MusicNN().state_dict()) - set(state)
    if any(not name.endswith("num_batches_tracked") for name in missing):
        raise SystemExit(f"build_musicnn: the checkpoint lacks {', '.join(sorted(missing))}.")
    arguments.out.mkdir(parents=True, exist_ok=True)
    save_file(state, arguments.out / "musicnn.safetensors")
    print(f"{sum(value.numel() for value in state.values())} numbers in {arguments.out / 'musicnn.safetensors'}")


if __name__ == "__main__":
    main()
