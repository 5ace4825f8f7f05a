"""What a sweeper that optimises is told of a job."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from common.cost.latency import Latency
from common.errors import InputError
from experiments.reporting.metric_table import METRICS
from experiments.reporting.rows import COUNTS, distance_name, flat, student
from experiments.shared.row import metric_of
from experiments.shared.settings import Settings

FIGURES = {  # of a student, in any row
    *("distance", *COUNTS, *METRICS, "sparsity_nominal", "sparsity_actual", "sparsity_zeros", "sparsity_weights"),
    *(f"latency_{each.name}" for each in fields(Latency)),
}
PART = ("parameters", "nonzero_parameters", "checkpoint_bytes_fp16", *(name for name in FIGURES if name.startswith("sparsity")))
FIGURES |= {  # and of those that have a pruned autoencoder, or 2:4 kernels, or a sparse file
    *(f"autoencoder_{name}" for name in ("psnr", *PART)),
    *("semi_structured_converted", *(f"semi_structured_{each.name}" for each in fields(Latency))),
    *("sparse_file_denoiser_bytes", "sparse_file_autoencoder_bytes"),
}
DISTANCES = ("fd_", "kd_", "fad_")  # which are called after their extractor


def is_figure(name: str) -> bool:
    """Whether some row can have a figure of this name."""
    return metric_of(name) in FIGURES or name.startswith(DISTANCES)


def check_objectives(settings: Settings) -> None:
    """InputError when objectives is empty or names what no row can have: told before the job rather than after it."""
    asked = list(settings.objectives)
    unknown = [name for name in asked if not is_figure(name)]
    if unknown or not asked:
        told = f"{', '.join(unknown)} is no figure of a student" if unknown else "one at least is needed"
        raise InputError(f"objectives={asked}: {told}; there are distance, latency_ratio, parameters, macs, …")
    measured = {each.get(column) for each in settings.metrics.values() for column in ("name", "fid", "kid")}
    for name in map(metric_of, asked):
        if name in METRICS and METRICS[name].published and name not in measured:
            raise InputError(f"objectives={asked}: {name} is measured where metrics=[...] asks for it.")


def objectives(names: Sequence[str], row: dict[str, Any]) -> float | tuple[float, ...]:
    """The student's figures of these names ("distance" is its Fréchet distance); a single one as a number.

    InputError naming the figures there are.
    """
    figures = flat(row["models"][student(row)])
    figures["distance"] = figures[distance_name(row)]
    numbers = {name: value for name, value in figures.items() if isinstance(value, int | float)}
    unknown = [name for name in names if name not in numbers]
    if unknown:
        raise InputError(f"objectives={list(names)}: name some of {', '.join(numbers)}.")
    values = tuple(float(numbers[name]) for name in names)
    return values if len(values) > 1 else values[0]
