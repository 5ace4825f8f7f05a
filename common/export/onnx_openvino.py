"""ONNX and OpenVINO files of a network, what runs them, and how far their outputs are from PyTorch's."""

import copy
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from common.errors import InputError, first_line
from common.export.graphs import ExportedPart, Tensors

FORMATS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
"""What each format needs installed; OpenVINO's files are made of ONNX's."""
FILES = {"onnx": "model.onnx", "openvino": "openvino_model.xml"}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
Runner = Callable[[Tensors], Tensors]


def check_installed(formats: Sequence[str]) -> None:
    """InputError naming the extra where a format needs what is not installed."""
    missing = dict.fromkeys(name for each in formats for name in FORMATS[each] if find_spec(name) is None)
    if missing:
        raise InputError(
            f'--to {" --to ".join(formats)} needs {", ".join(missing)}: pip install -c constraints.txt -e ".[export]"'
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch's exporter tells about itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)


def as_type(tensors: Tensors, dtype: torch.dtype) -> Tensors:
    """Floating-point tensors in `dtype`, whole numbers as they are."""
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}


def dynamic_shapes(part: ExportedPart) -> dict[str, dict[int, Any]]:
    """The inputs' dynamic axes as torch.export takes them."""
    from torch.export import Dim

    multiples = {name: part.factor * Dim(f"{name}_units", min=1) for name in ("height", "width")} if part.factor > 1 else {}
    return {
        name: {axis: multiples.get(called, Dim.DYNAMIC) for axis, called in axes.items()} for name, axes in part.inputs.items()
    }


def write_onnx(part: ExportedPart, path: Path, dtype: torch.dtype) -> None:
    """Exports the part by torch's exporter over torch.export; weights beyond 1.5 GiB lie in a file beside `path`.

    Weights, inputs and outputs are of `dtype`. InputError with the exporter's reason when it does not manage.
    """
    network = part.network if dtype == torch.float32 else copy.deepcopy(part.network).to(dtype)
    # sizes above the network's own, that no axis of the example is 1 after the last downsampler
    inputs = {
        name: value.repeat_interleave(2, 2).repeat_interleave(3, 3) if "height" in part.inputs[name].values() else value
        for name, value in as_type(part.draw(2, False, torch.Generator().manual_seed(0)), dtype).items()
    }
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(network, tuple(inputs.values()), dynamic_shapes=dynamic_shapes(part))
            exported = torch.onnx.export(
                program, input_names=list(part.inputs), output_names=list(part.outputs), dynamo=True, verbose=False
            )
    except Exception as error:  # torch.export, the decompositions and the translation each raise their own
        reason = first_line(error.__cause__ or error)
        raise InputError(f"{part.name} cannot be exported to ONNX: {reason}") from error
    graph = exported.model.graph
    for values, axes in ((graph.inputs, part.inputs), (graph.outputs, part.outputs)):
        for value in values:
            for axis, called in axes[value.name].items():
                value.shape[axis] = called
    for node in exported.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces, with the paths of this machine
    path.parent.mkdir(parents=True, exist_ok=True)
    exported.save(path)


def write_openvino(source: Path, path: Path) -> None:
    """Converts an ONNX file to OpenVINO's .xml and .bin, in the types that it has."""
    import openvino

    path.parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(openvino.Core().read_model(source), path, compress_to_fp16=False)


def onnx_runner(path: Path) -> Runner:
    """ONNX Runtime on the CPU with as many threads as PyTorch."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Tensors) -> Tensors:
        found = session.run(names, {name: value.numpy() for name, value in inputs.items()})
        return {name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)}

    return run


def openvino_runner(path: Path) -> Runner:
    """OpenVINO on the CPU with as many threads as PyTorch; it computes in f32 whatever the processor would prefer."""
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(path, "CPU", options)
    names = [output.get_any_name() for output in compiled.outputs]

    def run(inputs: Tensors) -> Tensors:
        found = compiled({name: value.numpy() for name, value in inputs.items()})
        return {name: torch.from_numpy(found[index].copy()) for index, name in enumerate(names)}

    return run


RUNNERS = {"onnx": onnx_runner, "openvino": openvino_runner}


def compare_outputs(part: ExportedPart, run: Runner, dtype: torch.dtype, batches: tuple[int, ...], seed: int) -> dict[str, Any]:
    """The largest differences to PyTorch in float32 over all outputs, on fresh inputs of each batch size, rounded to `dtype`.

    The last batch is of a larger height where the part has one. max_relative is max |difference| / max |PyTorch's output|.
    """
    generator = torch.Generator().manual_seed(seed)
    absolute = relative = 0.0
    shapes = []
    for batch in batches:
        inputs = as_type(part.draw(batch, batch == batches[-1], generator), dtype)
        wanted, found = part.run(as_type(inputs, torch.float32)), run(inputs)
        for name, reference in wanted.items():
            if found[name].shape != reference.shape:
                given, needed = tuple(found[name].shape), tuple(reference.shape)
                raise InputError(f"{part.name}: {name} of the exported file is {given}, PyTorch's is {needed}.")
            difference = float((found[name].float() - reference).abs().max())
            absolute = larger(absolute, difference)
            relative = larger(relative, difference / max(float(reference.abs().max()), 1e-30))
        shapes.append(list(next(iter(inputs.values())).shape))
    return {"max_absolute": absolute, "max_relative": relative, "inputs": shapes}


def larger(first: float, second: float) -> float:
    """The larger number; what is no number wins."""
    return second if math.isnan(second) else max(first, second)


class RunnerAsDenoiser:
    """A runner in the place of a denoiser: called as one of diffusers, with a single timestep or one a row."""

    def __init__(self, run: Runner, dtype: torch.dtype):
        self.run, self.dtype = run, dtype

    def __call__(self, sample: torch.Tensor, timestep: torch.Tensor, **conditions: Any) -> Any:
        from diffusers.models.unets.unet_2d import UNet2DOutput

        flat = {**conditions.pop("added_cond_kwargs", {}), **conditions}
        inputs = {"sample": sample, "timestep": timestep.expand(len(sample)).contiguous(), **flat}
        return UNet2DOutput(self.run(as_type(inputs, self.dtype))["out_sample"].float())
