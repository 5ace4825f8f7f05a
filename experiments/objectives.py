"""What a sweeper that optimises is told of a job."""

from typing import Any

from omegaconf import DictConfig

from common.errors import InputError
from experiments.rows import distance_name, flat, student


def objectives(cfg: DictConfig, row: dict[str, Any]) -> float | tuple[float, ...]:
    """The student's figures named in cfg.objectives ("distance" is its Fréchet distance); a single one as a number.

    InputError naming the figures there are.
    """
    figures = flat(row["models"][student(row)])
    figures["distance"] = figures[distance_name(row)]
    numbers = {name: value for name, value in figures.items() if isinstance(value, int | float)}
    unknown = [name for name in cfg.objectives if name not in numbers]
    if unknown or not cfg.objectives:
        raise InputError(f"objectives={list(cfg.objectives)}: name some of {', '.join(numbers)}.")
    values = tuple(float(numbers[name]) for name in cfg.objectives)
    return values if len(values) > 1 else values[0]
