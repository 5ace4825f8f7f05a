"""Nothing is removed: what training alone does to a teacher, the other end of every comparison."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from common.pruning.forecast import CalibrationSize, Forecast
from common.pruning.method import Method
from common.pruning.plan import Plan


@dataclass
class Dense(Method):
    """Removes nothing: an empty plan."""

    def plan(self, unet: nn.Module, calibration: Any, teacher: str, scores: Any) -> Plan:
        """The empty plan; neither calibration nor scores are used."""
        return Plan(method="dense", edits=(), teacher=teacher)

    def forecast(self, unet: nn.Module, size: CalibrationSize) -> Forecast:
        """No scores; the student is the teacher's network."""
        return Forecast(plan=self.plan(unet, None, "", None), exact=True)
