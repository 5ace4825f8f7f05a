"""A student as it is deployed: through torchao's weight-only quantisation, torch.compile, or both; size, time, distance.

`deployment` of the settings names them: int8, float8, compile, int8+compile, float8+compile. Each becomes a model of the row
beside the student. They are no part of a job's id: they change nothing that the job made, and can be asked for later.
"""

import copy
import sys
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from common.cost.macs import count_parameters
from common.errors import InputError, first_line
from common.models.latent_diffusion import LatentDiffusion
from experiments.evaluation.evaluate import evaluate
from experiments.evaluation.measure_cost import measure_latency
from experiments.evaluation.real_features import Reference
from experiments.shared.job import Job
from experiments.shared.row import Row

UNCHANGED = ("parameters", "nonzero_parameters", "macs", "macs_without_attention_products", "sparsity")


def deployed(network: nn.Module, how: str) -> nn.Module:
    """A copy of a network that runs as `how` says; InputError where torchao is not there.

    Quantised are the weights of its Linear layers, each row with a scale of its own; activations, and convolutions, for which
    torchao has no such weights, stay as they are.
    """
    network, steps = copy.deepcopy(network), how.split("+")
    for kind in ("int8", "float8"):
        if kind in steps:
            quantize(network, kind)
    if "compile" in steps:
        network.compile()
    return network


def quantize(network: nn.Module, kind: str) -> None:
    """Quantises the weights of Linear layers in place."""
    if find_spec("torchao") is None:
        raise InputError(f'deployment={kind} needs torchao: pip install -c constraints.txt -e ".[quantization]"')
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    quantize_(network, Int8WeightOnlyConfig(version=2) if kind == "int8" else Float8WeightOnlyConfig())


def stored_bytes(network: nn.Module) -> int:
    """Bytes of a network's file: quantised weights with their scales as they are, all others in half precision."""
    return sum(map(tensor_bytes, network.state_dict().values()))


def tensor_bytes(tensor: Any) -> int:
    if is_quantised(tensor):
        inner, _ = tensor.__tensor_flatten__()
        parts = [getattr(tensor, name) for name in inner]
        return sum(part.numel() * min(part.element_size(), 2) for part in parts if part is not None)
    return tensor.numel() * 2


def is_quantised(tensor: Any) -> bool:
    return hasattr(tensor, "__tensor_flatten__") and type(tensor) not in (torch.Tensor, nn.Parameter)


def quantised_share(network: nn.Module) -> float:
    """Share of the parameters whose weights are quantised."""
    quantised = sum(each.numel() for each in network.parameters() if is_quantised(each.data))
    return quantised / count_parameters(network)


def not_deployed(job: Job, row: Row) -> list[str]:
    """The deployments of the settings that a row lacks."""
    return [how for how in job.settings.deployment if how not in row["models"]]


def measure_deployed(job: Job, row: Row, student: LatentDiffusion) -> None:
    """Measures the student as each of the settings' deployments that the row lacks, and enters it there as a model.

    What could not be had stands in row["deployment_missing"].
    """
    reference = Reference(job, job.settings.evaluation.split)
    missing, last = {}, "distilled" if "distilled" in row["models"] else "pruned"
    for how in not_deployed(job, row):
        try:
            same = {name: value for name, value in row["models"][last].items() if name in UNCHANGED}
            row["models"][how] = {**same, **figures_of(job, student, how, reference)}
        except torch.OutOfMemoryError:
            raise
        except (InputError, RuntimeError, ValueError, NotImplementedError) as error:  # no compiler, no kernels for a type
            missing[how] = first_line(error)
            print(f"deployment={how} is left out: {missing[how]}", file=sys.stderr)
    if missing:
        row["deployment_missing"] = missing
    else:
        row.pop("deployment_missing", None)


def figures_of(job: Job, student: LatentDiffusion, how: str, reference: Reference) -> dict[str, Any]:
    """Metrics of the student's samples, time of a forward pass against the teacher's, and bytes, when it runs as `how` says."""
    model = student.with_parts(denoiser=deployed(student.denoiser, how))
    rows, _ = evaluate(job, {how: model}, reference, job.folder / "samples")
    networks = {"teacher": job.teacher.denoiser, how: student.denoiser}
    latency = measure_latency(job, job.teacher, networks, {how: lambda network: deployed(network, how)})[how]
    figures = {**rows[how], "latency": asdict(latency), "checkpoint_bytes_fp16": stored_bytes(model.denoiser)}
    return {**figures, "quantised_share": quantised_share(model.denoiser)}
