"""The real images that samples are compared with, by features of their own extractor."""

from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig

from common.runtime.content import content_name
from common.runtime.progress import progress_bar
from common.runtime.seeding import generator_for
from experiments.shared.identity import as_dict, data_identity, identified
from experiments.shared.tensor_cache import cached_batches

FEATURES_AT_ONCE = 512  # of real images, in one file


class Reference:
    """Features of real images: `features` to compare with, and `floor_features` of as many others as are sampled.

    all_names and all_features: of every image of the data set, where it names them; else None.
    """

    def __init__(self, cfg: DictConfig, split: str, cache: Path, device: torch.device):
        from common.metrics.efficientnet import extract_features

        self.extractor = hydra.utils.instantiate(cfg.task.features).to(device)
        self.frechet, self.kernel = (f"{kind}_{self.extractor.name}" for kind in (self.extractor.distance, "kd"))
        data = hydra.utils.instantiate(cfg.task.data, split=split)

        self.all_names = getattr(data, "names", None)
        order = torch.randperm(len(data), generator=generator_for(cfg.evaluation.seed, 2))
        held_back = min(cfg.evaluation.images, len(data) // 2)
        wanted = held_back + cfg.evaluation.reference_images
        needed = order if self.all_names is not None else order[:wanted]

        def compute(rows: range) -> dict[str, torch.Tensor]:
            return {"features": extract_features(self.extractor, data.images[needed[rows.start : rows.stop]])}

        name = content_name("real", identified(as_dict(cfg.task.features)), data_identity(cfg), split, needed.tolist())
        parts = []
        with progress_bar("features of real images", len(needed)) as bar:
            for _, part in cached_batches(cache / name, len(needed), FEATURES_AT_ONCE, compute):
                parts.append(part["features"])
                bar.advance(len(parts[-1]))
        features = torch.cat(parts)
        self.held_back = order[:held_back]
        self.floor_features, self.features = features[:held_back], features[held_back:wanted]
        self.all_features = None if self.all_names is None else features[order.argsort()]
        self.seed = cfg.evaluation.seed

    def distances(self, features: torch.Tensor) -> dict[str, float]:
        """Fréchet and kernel distance (x1000) of `features` (count, width) to the real ones, named for the extractor."""
        from common.metrics.distances import frechet_distance, kernel_distance

        kernel, spread = kernel_distance(self.features, features, subset_size=min(100, len(features)), seed=self.seed)
        return {
            self.frechet: frechet_distance(self.features, features),
            self.kernel: 1000 * kernel,
            f"{self.kernel}_spread": 1000 * spread,
            "reference_images": len(self.features),
            "images": len(features),
        }
