"""A ControlNet (Zhang et al. 2023, arXiv 2302.05543) of a teacher, for its student.

It adds a residual to each skip connection of a U-Net, by its place in the list of them; diffusers takes the first ones where a
student has fewer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.cost.macs import probe_inputs, shape_twin
from common.diffusion.sampling import predict
from common.errors import InputError, first_line
from common.export.ip_adapter import original_path
from common.export.student_controlnet import StudentControlNet


@dataclass(frozen=True)
class Skip:
    """A skip connection: the module whose output it carries, and its channels."""

    module: str
    channels: int


def skips_of(unet: nn.Module) -> list[Skip]:
    """The skip connections of a U-Net in the order of a ControlNet's residuals."""
    twin: Any = shape_twin(unet)
    outputs: dict[str, tuple[torch.Tensor, ...]] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: outputs.__setitem__(name, output[1] if isinstance(output, tuple) else (output,))

    twin.conv_in.register_forward_hook(keep("conv_in"))
    for number, block in enumerate(twin.down_blocks):
        block.register_forward_hook(keep(f"down_blocks.{number}"))
    arguments, conditions = probe_inputs(twin)
    with torch.no_grad():
        predict(twin, *arguments, conditions)
    found = []
    for name, tensors in outputs.items():
        layers = 0 if name == "conv_in" else len(twin.get_submodule(name).resnets)
        for place, tensor in enumerate(tensors):
            inside = f".resnets.{place}" if place < layers else f".downsamplers.{place - layers}"
            found.append(Skip(name if name == "conv_in" else name + inside, tensor.shape[1]))
    return found


def load_controlnet(folder: Path, original: nn.Module) -> Any:
    """A ControlNetModel from a folder; InputError where it is none, or of another U-Net than `original`."""
    from diffusers import ControlNetModel

    try:
        network: Any = ControlNetModel.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # diffusers, safetensors and torch each raise their own kind
        raise InputError(f"The ControlNet {folder} cannot be read: {first_line(error).rstrip('.')}.") from error
    wanted: Any = original.config
    for name in ("in_channels", "block_out_channels", "layers_per_block", "cross_attention_dim"):
        mine, theirs = ([*value] if isinstance(value, tuple) else value for value in (network.config[name], wanted[name]))
        if mine != theirs:
            raise InputError(f"The ControlNet {folder} is of another model: its {name} is {mine}, the teacher's {theirs}.")
    return network


def residuals_for(original: nn.Module, student: nn.Module, sources: Mapping[str, str]) -> tuple[list[int], list[str]]:
    """The numbers of a ControlNet's residuals in the order of the student's skip connections, and the modules of the others.

    sources: as in Plan. InputError where a skip connection of the student has other channels than its teacher's.
    """
    theirs = {skip.module: (number, skip.channels) for number, skip in enumerate(skips_of(original))}
    numbers = []
    for skip in skips_of(student):
        number, channels = theirs[original_path(skip.module, sources)]
        if skip.channels != channels:
            raise InputError(
                f"No ControlNet of the teacher fits this student: the skip connection of {skip.module} has {skip.channels} of "
                f"its {channels} channels."
            )
        numbers.append(number)
    return numbers, [module for module, (number, _) in theirs.items() if number not in numbers]


def controlnet_of_student(network: Any, residuals: list[int]) -> StudentControlNet:
    """The same ControlNet, which returns some of its residuals."""
    made: StudentControlNet = StudentControlNet.from_config(network.config, residuals=residuals)
    made.load_state_dict(network.state_dict())
    return made.to(network.dtype)
