"""BK-SDM (arXiv 2305.15798) as a method: students by its table of blocks (baselines/bk_sdm_table.py)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from baselines.bk_sdm_table import Variant, plan_for
from common.pruning.forecast import CalibrationSize, Forecast
from common.pruning.method import Method
from common.pruning.plan import Plan, apply_plan
from common.settings import check_fields


def build_student(unet: nn.Module, variant: str) -> nn.Module:
    """BK-SDM-<variant> ("base", "small" or "tiny") of `unet`: a stock diffusers model with the teacher's weights copied.

    InputError when the variant's table does not fit the U-Net.
    """
    return apply_plan(unet, plan_for(unet, variant))


@dataclass
class BKSDM(Method):
    """Removes the blocks of BK-SDM's table for `variant`; no scores are needed."""

    variant: Variant

    def __post_init__(self) -> None:
        check_fields(self, "method")

    def plan(self, unet: nn.Module, calibration: Any, teacher: str, scores: Path | None) -> Plan:
        """The plan of `variant` for `unet`; neither calibration nor scores are used."""
        return plan_for(unet, self.variant, teacher)

    def forecast(self, unet: nn.Module, size: CalibrationSize) -> Forecast:
        """No scores; the student is known."""
        return Forecast(plan=plan_for(unet, self.variant), exact=True)
