"""Nothing is removed: what training alone does to a teacher, the other end of every comparison."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from common.pruning.forecast import CalibrationSize, Outlook
from common.pruning.plan import Plan


@dataclass
class Dense:
    """A method (see README) whose plan is empty."""

    def plan(self, unet: nn.Module, calibration: Any, teacher: str, scores: Any) -> Plan:
        """The empty plan; neither calibration nor scores are used."""
        return Plan(method="dense", edits=(), teacher=teacher)

    def outlook(self, unet: nn.Module, size: CalibrationSize) -> Outlook:
        """No scores; the student is the teacher's network."""
        return Outlook(plan=self.plan(unet, None, "", None), exact=True)
