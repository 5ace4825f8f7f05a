"""The networks of a student in ONNX and OpenVINO: written, compared with PyTorch, timed, and sampled with."""

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from common.diffusion.noise_schedule import is_flow, same_noise
from common.diffusion.sampling import denoise, with_guidance
from common.errors import InputError
from common.export.graphs import ExportedPart, exported_parts
from common.export.onnx_openvino import (
    DTYPES,
    FILES,
    FORMATS,
    RUNNERS,
    Runner,
    RunnerAsDenoiser,
    as_type,
    compare_outputs,
    write_onnx,
    write_openvino,
)
from common.models.latent_diffusion import LatentDiffusion
from common.runtime.progress import Counter, progress_bar

BATCHES = (1, 3)  # at which outputs are compared
SAMPLING_STEPS = 4  # of the short sampling that ends a comparison
SAMPLING_SLACK = 10  # guidance and repetition enlarge a difference: times the tolerance of one pass
ALONE = Path(__file__).with_name("loads_alone.py")


@dataclass(frozen=True)
class Wanted:
    """What is exported, and how it is judged and timed; rounds=0 leaves the timing out."""

    formats: tuple[str, ...]
    dtype: str
    tolerance: float  # of max |difference| / max |PyTorch's output|
    batch: int
    rounds: int
    seed: int


def given_noise(teacher: LatentDiffusion, count: int, seed: int) -> tuple[torch.Tensor, dict[str, Any], dict[str, Any]]:
    """Unit noise (count, *latent_shape), conditions of as many captions, and the condition of none."""
    noise = torch.randn(count, *teacher.latent_shape, generator=torch.Generator().manual_seed(seed))
    conditions = teacher.encode_captions(["a tree under a blue sky", "a red house"][:count])
    return noise, conditions, teacher.null_condition() if conditions else {}


def relative(found: torch.Tensor, wanted: torch.Tensor) -> dict[str, float]:
    """The largest difference, as it is and as a share of the largest value wanted."""
    difference = float((found - wanted).abs().max())
    return {"max_absolute": difference, "max_relative": difference / float(wanted.abs().max())}


def check(what: str, figures: dict[str, Any], tolerance: float) -> None:
    """InputError where the difference is beyond the tolerance, or no number."""
    if not figures["max_relative"] <= tolerance:
        raise InputError(
            f"{what} differs from PyTorch by {figures['max_relative']:.1e} of its largest value, more than {tolerance:.1e} "
            "(--tolerance): nothing was exported."
        )


@torch.no_grad()
def loads_alone(folder: Path, teacher: LatentDiffusion, guidance: float, seed: int) -> dict[str, Any]:
    """Has a process without this project load `folder` and draw; how far its latents and images are from ours.

    "pipeline" is the class that diffusers built; where it cannot (`reason` tells why), the parts are loaded one by one.
    """
    from diffusers import DDIMScheduler
    from safetensors.torch import load_file, save_file

    noise, conditions, empty = given_noise(teacher, 1, seed)
    conditions, guidance = with_guidance(teacher.denoiser, conditions, guidance), guidance if conditions else 1.0
    given = {"noise": noise} | {f"conditions.{name}": value.contiguous() for name, value in conditions.items()}
    given |= {f"empty.{name}": value.contiguous() for name, value in empty.items()}
    with tempfile.TemporaryDirectory() as scratch:
        paths = [str(Path(scratch, name)) for name in ("given.safetensors", "drawn.safetensors")]
        save_file({name: value.clone() for name, value in given.items()}, paths[0])
        command = [sys.executable, "-I", str(ALONE), str(folder.resolve()), *paths, str(SAMPLING_STEPS), str(guidance)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=scratch)
        if done.returncode:
            reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
            raise InputError(f"{folder} does not load without this project: {reason}")
        drawn = load_file(paths[1])
    own = is_flow(teacher.scheduler)  # a flow's, which is deterministic
    scheduler = teacher.scheduler if own else same_noise(DDIMScheduler, teacher.scheduler)
    latents = denoise(teacher.denoiser, scheduler, noise, conditions, empty, SAMPLING_STEPS, guidance)
    images = teacher.decode(latents)
    figures = {
        **json.loads(done.stdout.strip().splitlines()[-1]),
        "latents": relative(drawn["latents"], latents),
        "images": relative(drawn["images"], images),
    }
    check("A sample drawn without this project", figures["latents"], 1e-4)
    return figures


def time_part(part: ExportedPart, runners: dict[str, Runner], wanted: Wanted) -> dict[str, Any]:
    """Latency of PyTorch (float32) and of each format in one run, on the same inputs."""
    from common.cost.latency import compare_latency

    drawn = part.draw(wanted.batch, False, torch.Generator().manual_seed(wanted.seed + 1))
    inputs = as_type(drawn, DTYPES[wanted.dtype])
    calls = {"pytorch": lambda: part.run(drawn)} | {name: lambda run=run: run(inputs) for name, run in runners.items()}
    return {name: asdict(latency) for name, latency in compare_latency(calls, "pytorch", rounds=wanted.rounds).items()}


def compare_sampling(teacher: LatentDiffusion, runners: dict[str, Runner], guidance: float, wanted: Wanted) -> dict[str, Any]:
    """Latents of a few DDIM steps with each format's denoiser in the place of PyTorch's, against PyTorch's."""
    from diffusers import DDIMScheduler

    scheduler = same_noise(DDIMScheduler, teacher.scheduler)
    arguments = (scheduler, *given_noise(teacher, 2, wanted.seed + 2), SAMPLING_STEPS, guidance)
    reference = denoise(teacher.denoiser, *arguments)
    return {
        name: relative(denoise(RunnerAsDenoiser(run, DTYPES[wanted.dtype]), *arguments), reference)
        for name, run in runners.items()
    }


def export_part(part: ExportedPart, folder: Path, wanted: Wanted, bar: Counter) -> tuple[dict[str, Any], dict[str, Runner]]:
    """Files of one network below `folder`, with their figures by format, and what runs them."""
    paths = {name: folder / name / part.name / FILES[name] for name in FORMATS}
    bar.advance(0, f"{part.name} to ONNX")
    write_onnx(part, paths["onnx"], DTYPES[wanted.dtype])
    if "openvino" in wanted.formats:
        write_openvino(paths["onnx"], paths["openvino"])
    bar.advance()
    figures: dict[str, Any] = {}
    runners: dict[str, Runner] = {}
    for name in wanted.formats:
        bar.advance(0, f"{part.name} in {name}")
        runners[name] = RUNNERS[name](paths[name])
        found = compare_outputs(part, runners[name], DTYPES[wanted.dtype], BATCHES, wanted.seed)
        check(f"{part.name} in {name}", found, wanted.tolerance)
        size = sum(path.stat().st_size for path in paths[name].parent.iterdir())
        figures[name] = {"file": str(paths[name].relative_to(folder)), "names": list(part.inputs), "bytes": size, **found}
        bar.advance()
    if wanted.rounds:
        bar.advance(0, f"{part.name}: time")
        for name, latency in time_part(part, runners, wanted).items():
            figures.setdefault(name, {})["latency"] = latency
    bar.advance()
    return figures, runners


def export_formats(teacher: LatentDiffusion, folder: Path, guidance: float, wanted: Wanted) -> dict[str, Any]:
    """Every network in every format below `folder` (<format>/<part>/), and what was found, as export.json has it.

    InputError, after which the caller throws `folder` away, when an output is further from PyTorch's than the tolerance.
    """
    parts = exported_parts(teacher)
    factor = parts[0].factor
    figures: dict[str, Any] = {}
    with progress_bar("exporting", len(parts) * (2 + len(wanted.formats)) + 1) as bar:
        for part in parts:
            figures[part.name], runners = export_part(part, folder, wanted, bar)
            if part.name == "unet":
                sampling = compare_sampling(teacher, runners, guidance, wanted)
                bar.advance()
    for name, found in sampling.items():
        check(f"Sampling with {name}", found, SAMPLING_SLACK * wanted.tolerance)
    if "onnx" not in wanted.formats:
        shutil.rmtree(folder / "onnx")
    packages = ("torch", *dict.fromkeys(name for each in wanted.formats for name in FORMATS[each]))
    return {
        "dtype": wanted.dtype,
        "tolerance": wanted.tolerance,
        "factor": factor,
        "parts": figures,
        "sampling": {"steps": SAMPLING_STEPS, "guidance_scale": guidance, **sampling},
        "latency_protocol": {  # how times were taken, and with which versions
            "batch": wanted.batch,
            "rounds": wanted.rounds,
            "threads": torch.get_num_threads(),
            "pytorch": "float32, on the CPU",
            "precision": {name: "f32" if name == "openvino" else wanted.dtype for name in wanted.formats},
            "packages": {name: version(name) for name in packages},
        },
    }
