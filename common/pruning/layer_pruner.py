"""What all methods that remove whole layers have in common: from a score per layer to a plan of the wanted size."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from common.errors import InputError, check_one_given
from common.pruning.budget import Budget, bounds_of
from common.pruning.forecast import CalibrationSize, Forecast
from common.pruning.layers import Granularity, Layer, SizeUnit, WidthChanging, layer_sizes, list_layers, random_scores
from common.pruning.method import Method
from common.pruning.plan import Plan
from common.settings import Share, check_fields


def removal_budget(ratio: float | None, unit: str, sizes: Sequence[float], whole: float) -> float:
    """ratio * whole; InputError when the ratio is larger than all layers together, or not given."""
    if ratio is None:
        raise InputError("method.ratio=null: a plan is of a ratio; that of a budget is searched (common.pruning.budget).")
    largest = sum(sizes) / whole
    if ratio > largest:
        raise InputError(f"method.ratio={ratio}: all layers together are {math.floor(1e4 * largest) / 1e4} of the {unit}.")
    return ratio * whole


def lowest_layers(scores: Sequence[float], sizes: Sequence[float], budget: float) -> list[int]:
    """Indices, ascending, of the layers with the lowest scores until their sizes sum to `budget` at least."""
    chosen: list[int] = []
    removed = 0.0
    for index in sorted(range(len(scores)), key=scores.__getitem__):
        if removed >= budget:
            break
        chosen.append(index)
        removed += sizes[index]
    return sorted(chosen)


@dataclass
class LayerPruner(Method):
    """Base of a method: scores the layers, selects among them, returns the plan. A method gives layer_scores.

    name: what plans say that they are of; a class that gives none is called by its own.

    ratio: the share of the U-Net to remove, at least, in `unit`; or else budget: what the student may take
    (common.pruning.budget). granularity, width_changing, exclude: which layers (common.pruning.layers).
    """

    name: ClassVar[str]
    knob: ClassVar[str] = "ratio"
    ratio: Share | None
    budget: Budget | None = field(default=None, kw_only=True)
    unit: SizeUnit = field(default="parameters", kw_only=True)
    granularity: Granularity = field(default="transformer", kw_only=True)
    width_changing: WidthChanging = field(default="shortcut", kw_only=True)
    exclude: tuple[str, ...] = field(default=(), kw_only=True)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.name = cls.__dict__.get("name", cls.__name__)

    def __post_init__(self) -> None:
        check_fields(self, "method")
        check_one_given(ratio=self.ratio, budget=self.budget)
        if self.budget is not None:
            bounds_of(self)

    def layer_scores(
        self, unet: nn.Module, layers: Sequence[Layer], calibration: Any, teacher: str, folder: Path | None
    ) -> dict[str, float]:
        """A number per layer by its site, low for layers that are cheap to remove; `folder` survives a kill."""
        raise NotImplementedError

    def select(self, scores: Sequence[float], sizes: Sequence[float], budget: float) -> list[int]:
        """Indices of the layers to remove, whose sizes sum to `budget` at least."""
        return lowest_layers(scores, sizes, budget)

    def plan(self, unet: nn.Module, calibration: Any, teacher: str, scores: Path | None) -> Plan:
        """The plan for `unet`; scores and measured times are kept below the folder `scores`.

        `teacher` names the weights (LatentDiffusion.fingerprint). InputError for a ratio outside (0, 1) or out of reach, and
        for a score that is not a number.
        """
        layers = list_layers(unet, self.granularity, self.width_changing, self.exclude)
        conditions = None if calibration is None else calibration.null_condition
        sizes, whole = layer_sizes(unet, layers, self.unit, scores, teacher, conditions)
        budget = removal_budget(self.ratio, self.unit, sizes, whole)
        found = self.layer_scores(unet, layers, calibration, teacher, scores)
        missing = [layer.site for layer in layers if layer.site not in found]
        if missing:
            raise InputError(f"{self.name}: layer_scores leaves out {len(missing)} layers, {missing[0]} first.")
        for site, score in found.items():
            if not math.isfinite(score):
                raise InputError(f"{self.name}: the score of {site} is {score}; are the teacher's weights finite?")
        chosen = self.select([found[layer.site] for layer in layers], sizes, budget)
        return Plan(
            method=self.name,
            edits=tuple(replace(layers[i].edit, score=found[layers[i].site]) for i in chosen),
            teacher=teacher,
            scores=found,
            settings=asdict(self) | {"ratio_reached": sum(sizes[i] for i in chosen) / whole},
        )

    def forecast(self, unet: nn.Module, size: CalibrationSize) -> Forecast:
        """No scores; a student of the wanted size, its layers drawn at random (by parameters where the unit is a time)."""
        layers = list_layers(unet, self.granularity, self.width_changing, self.exclude)
        unit = "parameters" if self.unit == "milliseconds" else self.unit
        sizes, whole = layer_sizes(unet, layers, unit)
        scores = random_scores(layers, 0)
        chosen = lowest_layers([scores[layer.site] for layer in layers], sizes, removal_budget(self.ratio, unit, sizes, whole))
        plan = Plan(method=self.name, edits=tuple(layers[i].edit for i in chosen))
        return Forecast(
            plan=plan, note=f"student: {len(chosen)} layers drawn at random, {self.ratio:.0%} of the {unit} or more"
        )
