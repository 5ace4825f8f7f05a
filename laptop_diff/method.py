"""LAPTOP-Diff (arXiv 2404.11098): the layers whose summed single-layer losses are least, for a wanted size removed."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from torch import nn

from common.pruning.forecast import CalibrationSize, Forecast
from common.pruning.layer_pruner import LayerPruner, lowest_layers
from common.pruning.layers import Layer, list_layers
from common.runtime.content import content_name
from common.runtime.progress import progress_bar
from common.scoring.calibration import Calibration
from common.scoring.noisy_batches import Timesteps
from common.scoring.score_file import ScoreFile
from common.settings import AtLeastOne, NonNegative, Seed
from laptop_diff.criteria import Criterion, layer_losses
from laptop_diff.knapsack import greedy_layers, select_layers

SELECTIONS = {"knapsack": select_layers, "greedy": greedy_layers, "lowest": lowest_layers}


@dataclass
class LaptopDiff(LayerPruner):
    """Removes the layers whose summed output losses are least, chosen by a knapsack.

    ratio, unit, granularity, width_changing, exclude: common.pruning.layer_pruner. criterion, timesteps, guidance_scale,
    batch_size, copies: what a layer's loss is and how it is computed (laptop_diff.criteria). selection: "knapsack" is exact;
    "greedy" (by loss per size) and "lowest" (by loss) are comparisons.
    """

    name = "laptop_diff"
    criterion: Criterion
    timesteps: Timesteps
    guidance_scale: NonNegative
    batch_size: AtLeastOne
    copies: AtLeastOne
    selection: Literal["knapsack", "greedy", "lowest"]
    seed: Seed

    def select(self, scores: Sequence[float], sizes: Sequence[float], budget: float) -> list[int]:
        """Layers by `selection`. Losses below 0 count as 0: that a removal helps on few rows is noise, and no reason to
        remove more than was asked for. Free layers that the budget does not need stay.
        """
        losses = [max(0.0, score) for score in scores]
        chosen = SELECTIONS[self.selection](losses, sizes, budget)
        removed = sum(sizes[index] for index in chosen)
        for index in sorted((i for i in chosen if losses[i] == 0), key=lambda i: -sizes[i]):
            if removed - sizes[index] >= budget:
                chosen.remove(index)
                removed -= sizes[index]
        return chosen

    def layer_scores(
        self, unet: nn.Module, layers: Sequence[Layer], calibration: Calibration, teacher: str, folder: Path | None
    ) -> dict[str, float]:
        """The losses; those of a whole run or a killed one are found again in `folder`."""
        file = ScoreFile.open(None if folder is None else folder / f"{self.score_key(calibration, teacher)}.json")
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

    def forecast(self, unet: nn.Module, size: CalibrationSize) -> Forecast:
        """As for any method that removes layers, and the forward passes that its criterion takes, replayed ones included."""
        found = super().forecast(unet, size)
        networks = len(list_layers(unet, self.granularity, self.width_changing, self.exclude)) + 1  # and the intact one
        if self.criterion == "alignment":
            batch = self.batch_size * self.copies * size.passes(size.guidance_scale)
            return replace(found, forward=networks * size.edited_latents, batch=batch)
        if self.criterion in ("magnitude", "random"):
            return found
        passes = size.passes(self.guidance_scale)
        batch = min(self.batch_size, size.rows) * self.copies * passes
        return replace(found, forward=networks * size.rows * passes, batch=batch)

    def score_key(self, calibration: Calibration, teacher: str) -> str:
        """Names what the losses depend on, to the last bit: not the ratio, not how layers are selected."""
        free = ("ratio", "unit", "selection")
        settings = {name: value for name, value in asdict(self).items() if name not in free}
        depends: dict[str, Callable[[], str]] = {
            "alignment": calibration.alignment_fingerprint,
            "magnitude": str,
            "random": str,
        }
        sampled = depends.get(self.criterion, calibration.data_fingerprint)()
        return content_name("laptop_diff", settings, sampled, teacher)
