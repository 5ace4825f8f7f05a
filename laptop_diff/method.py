"""LAPTOP-Diff (arXiv 2404.11098): the layers whose summed single-layer losses are least, for a wanted size removed."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from common.calibration import Calibration
from common.errors import InputError
from common.layers import Layer, layer_sizes, list_layers, lowest_layers, plan_of_layers, removal_budget
from common.plans import Plan
from common.progress import progress_bar
from common.score_file import ScoreFile
from laptop_diff.criteria import CRITERIA, layer_losses
from laptop_diff.knapsack import greedy_layers, select_layers

SELECTIONS = {"knapsack": select_layers, "greedy": greedy_layers, "lowest": lowest_layers}


@dataclass
class LaptopDiff:
    """A method (see README): reads a teacher's denoiser and a calibration, returns a plan.

    ratio: the share of the U-Net to remove, at least, in `unit`. granularity, width_changing, exclude: which layers
    (common.layers). criterion, timesteps, guidance_scale, batch_size, copies: what a layer's loss is and how it is
    computed (laptop_diff.criteria). selection: "knapsack" is exact; "greedy" (by loss per size) and "lowest" (by loss) are
    comparisons.
    """

    ratio: float
    unit: str
    granularity: str
    width_changing: str
    exclude: tuple[str, ...]
    criterion: str
    timesteps: str
    guidance_scale: float
    batch_size: int
    copies: int
    selection: str
    seed: int

    def plan(self, unet: nn.Module, calibration: Calibration, teacher: str, scores: Path | None) -> Plan:
        """The plan for `unet`; losses and measured times are kept below the folder `scores`.

        `teacher` names the weights (Teacher.fingerprint). InputError for a ratio outside (0, 1) or out of reach.
        """
        if self.selection not in SELECTIONS:
            raise InputError(f"method.selection={self.selection!r} is none of {', '.join(SELECTIONS)}.")
        for name in ("batch_size", "copies"):
            if getattr(self, name) < 1:
                raise InputError(f"method.{name}={getattr(self, name)}: at least 1 is needed.")
        layers = list_layers(unet, self.granularity, self.width_changing, self.exclude)
        key = None if scores is None else scores / self._key(calibration, teacher)
        times = None if key is None else key.with_name(f"{key.name}-milliseconds.json")
        sizes, whole = layer_sizes(unet, layers, self.unit, times)
        budget = removal_budget(self.ratio, self.unit, sizes, whole)
        losses = self._losses(unet, layers, calibration, key)
        chosen = SELECTIONS[self.selection]([losses[layer.site] for layer in layers], sizes, budget)
        settings = asdict(self) | {"ratio_reached": sum(sizes[i] for i in chosen) / whole}
        return plan_of_layers("laptop_diff", layers, chosen, losses, teacher, settings)

    def _key(self, calibration: Calibration, teacher: str) -> str:
        """Names what the losses depend on: not the ratio, not how layers are selected."""
        names = ("width_changing", "criterion", "timesteps", "guidance_scale", "batch_size", "seed")
        settings = {name: getattr(self, name) for name in names}
        sampled = calibration.fingerprint() if self.criterion == "alignment" else calibration.data_fingerprint()
        text = json.dumps(["laptop_diff", settings, sampled, teacher], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _losses(self, unet: nn.Module, layers: list[Layer], calibration: Calibration, key: Path | None) -> dict[str, float]:
        if self.criterion not in CRITERIA:
            raise InputError(f"method.criterion={self.criterion!r} is none of {', '.join(CRITERIA)}.")
        file = ScoreFile.open(None if key is None else key.with_suffix(".json"))
        with progress_bar("scoring layers", len(layers)) as bar:
            return layer_losses(
                unet,
                layers,
                calibration,
                file,
                criterion=self.criterion,
                timesteps=self.timesteps,
                guidance_scale=self.guidance_scale,
                batch_size=self.batch_size,
                copies=self.copies,
                seed=self.seed,
                report=bar.reach,
            )
