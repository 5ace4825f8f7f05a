"""Sparse models in small files: of each tensor the elements that are not zero, and one bit per element that says which.

A safetensors file with, per tensor of the state dictionary, either "dense:<name>", or "bits:<name>" (uint8, eight elements to
a byte) and "values:<name>" (the elements whose bits are not all zero, in order: -0.0 counts as a value). A tensor is
stored densely where that is not larger. The header holds shapes and a checksum.
"""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from common.errors import InputError
from common.pruning.masks import pack_bits, unpack_bits
from common.runtime.files import write_atomically

FORMAT = "bonsai sparse 1"
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class SparseSize:
    """Bytes of a model's tensors as they are, and as save_sparse stores them (without the header)."""

    dense: int
    sparse: int


def same_bits(tensor: torch.Tensor) -> torch.Tensor | None:
    """The tensor's bits as integers of the same size; None for types that have no such integers."""
    kind = INTEGERS.get(tensor.dtype.itemsize)
    return None if kind is None else tensor.contiguous().view(kind)


def encode(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """What is stored of one tensor: itself, or its bits and values, whichever is smaller."""
    tensor = tensor.detach().cpu()
    bits = same_bits(tensor)
    if bits is not None:
        present = bits != 0
        count = int(present.sum())
        if (tensor.numel() + 7) // 8 + count * tensor.dtype.itemsize < tensor.nbytes:
            return {f"bits:{name}": pack_bits(present), f"values:{name}": bits[present].view(tensor.dtype)}
    return {f"dense:{name}": tensor.clone(memory_format=torch.contiguous_format)}


def checksum(parts: dict[str, torch.Tensor]) -> str:
    """CRC-32 over the bytes of all parts in the order of their names."""
    found = 0
    for name in sorted(parts):
        found = zlib.crc32(parts[name].contiguous().reshape(-1).view(torch.uint8).numpy(), zlib.crc32(name.encode(), found))
    return f"{found:08x}"


def save_sparse(model: nn.Module, path: str | Path) -> SparseSize:
    """Writes the model's state dictionary to `path`, whole or not at all; returns the bytes of its tensors."""
    from safetensors.torch import save

    parts = {part: value for name, tensor in model.state_dict().items() for part, value in encode(name, tensor).items()}
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    metadata = {"format": FORMAT, "shapes": json.dumps(shapes), "crc32": checksum(parts)}
    write_atomically(Path(path), save(parts, metadata))
    dense = sum(tensor.nbytes for tensor in model.state_dict().values())
    return SparseSize(dense, sum(tensor.nbytes for tensor in parts.values()))


def read_parts(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The parts and the metadata; InputError for a file that is absent, damaged, or not of save_sparse."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"{path}: there is no such file.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            parts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dictionary
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged ({error}); save it anew.") from error
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path} was not written by save_sparse; a safetensors file in that form is needed.")
    if metadata.get("crc32") != checksum(parts):
        raise InputError(f"{path} is damaged (its checksum differs); save it anew.")
    return parts, metadata


def decode(name: str, shape: list[int], parts: dict[str, torch.Tensor]) -> torch.Tensor:
    """The inverse of encode; ValueError or KeyError where the parts do not fit together."""
    if f"dense:{name}" in parts:
        return parts[f"dense:{name}"]
    values = parts[f"values:{name}"]
    present = unpack_bits(parts[f"bits:{name}"], shape)
    if int(present.sum()) != values.numel():
        raise ValueError(f"{values.numel()} values for {int(present.sum())} places of {name}")
    kind = INTEGERS[values.dtype.itemsize]
    bits = torch.zeros(tuple(shape), dtype=kind)
    bits[present] = values.view(kind)
    return bits.view(values.dtype)


def load_sparse(path: str | Path, model: nn.Module) -> nn.Module:
    """Puts the tensors of a save_sparse file into `model`, bit for bit, and returns it; on an error it is as before.

    InputError for an absent or damaged file, and naming a tensor that is missing, unknown, or of another shape or type.
    """
    path = Path(path)
    parts, metadata = read_parts(path)
    try:
        shapes = json.loads(metadata["shapes"])
        found = {name: decode(name, shape, parts) for name, shape in shapes.items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); save it anew.") from error
    wanted = model.state_dict()
    strange = sorted(found.keys() ^ wanted.keys())
    if strange:
        where = "the file" if strange[0] in wanted else type(model).__name__
        raise InputError(f"{path} is of another model: {where} has no {strange[0]} ({len(strange)} such tensors in all).")
    for name, tensor in wanted.items():
        theirs = found[name]
        if theirs.shape != tensor.shape or theirs.dtype != tensor.dtype:
            given, needed = (f"{t.dtype} {tuple(t.shape)}" for t in (theirs, tensor))
            raise InputError(f"{path} is of another model: {name} is {given} there, {needed} in {type(model).__name__}.")
    model.load_state_dict(found)
    return model
