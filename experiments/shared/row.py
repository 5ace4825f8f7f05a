"""The result row of a job: what result.json holds, and a line of rows.jsonl."""

from typing import Any, NotRequired, Required, TypedDict

Figures = dict[str, Any]
"""Of one model: `parameters`, `nonzero_parameters`, `macs`, `checkpoint_bytes_fp16`, `latency` (milliseconds, ratio to the
teacher's, ...), `sparsity`, and a number for each metric of experiments/reporting/metric_table.py."""


class Row(TypedDict, total=False):
    """One job: what was asked for, and what was measured."""

    settings: Required[dict[str, Any]]
    """The configuration, without what does not change the job (experiments/shared/job_id.py)."""
    command: str
    choices: dict[str, str | None]
    """The option that was chosen of each group: task, scale, teacher, method, distill, experiment, row."""
    models: Required[dict[str, Figures]]
    """By model: teacher, pruned, distilled where the job trains, and "real" for the floor of the distances."""
    plan: Required[list[dict[str, Any]]]
    """The edits of the denoiser (common.pruning.plan.Edit.to_dict)."""
    reached: dict[str, float]
    """What of a wanted k, ratio or sparsity was reached, by the name of the setting with _reached."""
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
    path: NotRequired[str]
    """Where the row was read from; not in the file."""
