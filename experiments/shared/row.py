"""The result row of a job: what result.json holds, and a line of rows.jsonl."""

from collections.abc import Mapping
from typing import Any, NotRequired, Required, TypedDict

from common.metrics.jackknife import Estimate

Figures = dict[str, Any]
"""Of one model: `parameters`, `nonzero_parameters`, `macs`, `checkpoint_bytes_fp16`, `latency` (milliseconds, ratio to the
teacher's, ...), `sparsity`, and a number for each metric of experiments/reporting/metric_table.py, with its 95 % interval under
the same name with _low and _high, and with _replicates, by which rows of equal seeds are compared."""
LOW, HIGH, REPLICATES, SPREAD = "_low", "_high", "_replicates", "_spread"
BESIDE = (LOW, HIGH, REPLICATES, SPREAD)
"""Endings of what stands beside a metric and is none itself."""


def metric_of(name: str) -> str:
    """The metric that a figure of this name is or stands beside."""
    return next((name.removesuffix(ending) for ending in BESIDE if name.endswith(ending)), name)


def with_intervals(estimates: Mapping[str, Estimate]) -> Figures:
    """The figures of a model, each with its interval and replicates where there are any; a spread over subsets has none."""
    found: Figures = {name: each.value for name, each in estimates.items()}
    for name, each in estimates.items():
        if each.replicates and not name.endswith(SPREAD):
            found[name + LOW], found[name + HIGH] = each.interval
            found[name + REPLICATES] = [float(f"{value:.7g}") for value in each.replicates]
    return found


def estimate_of(figures: Mapping[str, Any], name: str) -> Estimate | None:
    """A metric of a model with its replicates, of which older rows and figures that are not of samples have none."""
    value = figures.get(name)
    return None if value is None else Estimate(value, tuple(figures.get(name + REPLICATES) or ()))


class Row(TypedDict, total=False):
    """One job: what was asked for, and what was measured."""

    settings: Required[dict[str, Any]]
    """The configuration, without what does not change the job (experiments/shared/job_id.py)."""
    command: str
    choices: dict[str, str | None]
    """The option that was chosen of each group: task, scale, teacher, method, distill, experiment, row."""
    models: Required[dict[str, Figures]]
    """By model: teacher, pruned, distilled where the job trains, the student as each of the settings' `deployment`, and "real"
    for the floor of the distances."""
    plan: Required[list[dict[str, Any]]]
    """The edits of the denoiser (common.pruning.plan.Edit.to_dict)."""
    reached: dict[str, float]
    """What of a wanted k, ratio, sparsity or bound of a budget was reached, by the name of the setting with _reached."""
    by_steps: dict[str, dict[str, Figures]]
    """Metrics at further numbers of sampling steps (evaluation.more_steps), by the number, then by model."""
    curve: list[dict[str, float]]
    """Metrics of the student while it was trained (evaluation.every), each with its `step`."""
    protocol: Required[dict[str, Any]]
    """How the metrics were measured."""
    training: dict[str, dict[str, Any]]
    """What the method's callbacks report of the training of each part."""
    seconds: dict[str, float]
    """By stage."""
    environment: dict[str, Any]
    """Device, versions, revision of the code."""
    metrics_missing: dict[str, str]
    """Metrics that were asked for and could not be had, and why."""
    deployment_missing: dict[str, str]
    """The same of deployments."""
    path: NotRequired[str]
    """Where the row was read from; not in the file."""
