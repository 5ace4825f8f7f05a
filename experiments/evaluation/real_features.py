"""The real images that samples are compared with, by features of their own extractor."""

from functools import cached_property
from typing import Any

import torch

from common.data.teacher_samples import DrawnImages, rows_apart
from common.errors import InputError
from common.metrics.distances import frechet_of, kernel_distance_of
from common.metrics.jackknife import Figures
from common.runtime.content import content_name
from common.runtime.seeding import generator_for
from experiments.shared.job import Job
from experiments.shared.tensor_cache import cached_batches

FEATURES_AT_ONCE = 512  # of real images, in one file


def rows_of(job: Job, data: Any) -> tuple[list[int], list[int]]:
    """Numbers of the images of a split that nothing is compared with, and of those that samples are compared with."""
    evaluation = job.settings.evaluation
    captions = getattr(data, "captions", None) if isinstance(data.images, DrawnImages) else None
    return rows_apart(captions, len(data), evaluation.images, generator_for(evaluation.seed, 2))


def check_real(job: Job) -> None:
    """InputError where the data has too few images for a distance, which takes two on each side."""
    held_back, others = rows_of(job, job.evaluation_data)
    if min(len(held_back), len(others)) < 2:
        raise InputError(
            f"The data has {len(job.evaluation_data)} images of split={job.settings.evaluation.split}, of which samples can be "
            f"compared with {len(others)}, and those with {len(held_back)} (of other prompts, where the teacher draws them): "
            "two and two are needed."
        )


class Reference:
    """Features of a split's real images, computed when they are first asked for and kept for all jobs.

    extractor: what they are of; frechet, kernel: the names of its distances. names: of every image of the data set, or None.
    held_back: numbers of the images that nothing is compared with, as many as are sampled (half of a small set); of samples of
    the teacher's, images of other prompts than those that are compared with.
    """

    def __init__(self, job: Job, split: str):
        self.job, self.split, self.data = job, split, job.data(split)
        self.extractor = job.extractor()
        self.frechet, self.kernel = (f"{kind}_{self.extractor.name}" for kind in (self.extractor.distance, "kd"))
        self.names = getattr(self.data, "names", None)
        held_back, others = rows_of(job, self.data)
        self.order, self.held_back = torch.tensor([*held_back, *others]), torch.tensor(held_back)

    @cached_property
    def _computed(self) -> torch.Tensor:
        """Of the images in `order`: of all where they have names, else of as many as are needed."""
        from common.metrics.efficientnet import extract_features

        wanted = len(self.held_back) + self.job.settings.evaluation.reference_images
        needed = self.order if self.names is not None else self.order[:wanted]

        def compute(rows: range) -> dict[str, torch.Tensor]:
            return {"features": extract_features(self.extractor, self.data.images[needed[rows.start : rows.stop]])}

        name = content_name("real", self.job.features_identity, self.job.data_identity, self.split, needed.tolist())
        parts = cached_batches("features of the data", self.job.cache / name, len(needed), FEATURES_AT_ONCE, compute)
        return torch.cat([part["features"] for _, part in parts])

    @property
    def features(self) -> torch.Tensor:
        """(evaluation.reference_images, width): what samples are compared with."""
        first = len(self.held_back)
        return self._computed[first : first + self.job.settings.evaluation.reference_images]

    @cached_property
    def statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean (width) and covariance (width, width) of the features, in double precision."""
        features = self.features.double()
        return features.mean(0), features.T.cov()

    @property
    def floor_features(self) -> torch.Tensor:
        """Of the images held back, whose distance is the floor of what samples can reach."""
        return self._computed[: len(self.held_back)]

    @property
    def all_features(self) -> torch.Tensor:
        """Of every image, in the order of the data set; for data with names."""
        return self._computed[self.order.argsort()]

    def figures(self, features: torch.Tensor) -> Figures:
        """Fréchet and kernel distance (x1000) of `features` (count, width) to the real ones, named for the extractor."""
        frechet = frechet_of(*self.statistics, features)
        kernel = kernel_distance_of(self.features, features)
        return lambda kept: {self.kernel: 1000 * kernel(kept), self.frechet: frechet(kept)}

    def counts(self, features: torch.Tensor) -> dict[str, int]:
        """Of how many images the distances of `features` are."""
        return {"reference_images": len(self.features), "images": len(features)}

    def distances(self, features: torch.Tensor) -> dict[str, float]:
        """The distances of all of the features, and of how many images they are."""
        return {**self.figures(features)(torch.arange(len(features))), **self.counts(features)}
