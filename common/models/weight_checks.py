"""Whether the weights of a teacher can be the weights of a trained network."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from common.errors import InputError
from common.models.weight_files import Weights, weight_format

COUNTS = ("position_ids", "num_batches_tracked")  # tensors that hold whole numbers


def check_stored_types(folder: Path, weights: Weights) -> None:
    """InputError naming the first tensor in the folder's weight files that holds no real numbers of 16 bits or more.

    Loaders turn integers (int8 of a quantised model, whose scales lie elsewhere) into real numbers without a word.
    """
    for path in sorted(path for path in folder.iterdir() if weight_format(path.name) == weights and path.suffix != ".json"):
        for name, kind in stored_types(path, weights.format):
            if kind not in ("F16", "BF16", "F32", "F64") and not name.endswith(COUNTS):
                raise InputError(
                    f"{path}: {name} is stored as {kind}, not as real numbers: give weights that are not quantised."
                )


def stored_types(path: Path, form: str) -> Iterable[tuple[str, str]]:
    """Names of the tensors in a weight file, and what their numbers are in safetensors' words."""
    if form == "safetensors":
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            return [(name, file.get_slice(name).get_dtype()) for name in file.keys()]  # noqa: SIM118  it is no dictionary
    tensors = torch.load(path, map_location="meta", weights_only=True)
    words = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}
    held = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}
    return [(name, words.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))) for name, tensor in held.items()]


def check_numbers(folder: Path, network: nn.Module) -> None:
    """InputError where a parameter or a buffer holds NaN or infinity, a variance is below 0, and where all weights are zero."""
    for name, parameter in [*network.named_parameters(), *network.named_buffers()]:
        if name.endswith("running_var") and not (parameter >= 0).all():
            raise InputError(f"{folder}: {name} has numbers below 0, and is a variance: the weights are damaged.")
        if not parameter.isfinite().all():
            raise InputError(f"{folder}: {name} is not finite: the weights are damaged.")
    matrices = [parameter for parameter in network.parameters() if parameter.dim() > 1]
    if matrices and not any(matrix.count_nonzero() for matrix in matrices):
        raise InputError(f"{folder}: all weights are zero: they are damaged, or were never trained.")
