"""How well samples fit their captions, over the offline extractor: a stand-in for CLIP score where there is no CLIP."""

from functools import cached_property

import torch
from torch.nn.functional import cosine_similarity

from common.models.latent_diffusion import LatentDiffusion
from common.runtime.content import content_name
from experiments.evaluation.real_features import Reference
from experiments.evaluation.samples import draw_images
from experiments.shared.job import Job


class CaptionAlignment:
    """Mean cosine similarity between the features of samples and of the real images of their captions' names.

    Features are centred by the mean of all real images, as in caption retrieval. `names`: one per condition, of training
    captions, as the calibration's are. content: changes with any of them, and with the images.
    """

    def __init__(self, job: Job, teacher: LatentDiffusion, names: list[str]):
        self.job, self.teacher, self.names = job, teacher, names
        self.batch_size = job.settings.evaluation.batch_size
        self.content = content_name(job.features_identity, job.data_identity, names, self.batch_size)

    @cached_property
    def reference(self) -> Reference:
        return Reference(self.job, "train")

    def __call__(self, latents: torch.Tensor, chosen: slice) -> float:
        """The alignment of final latents (conditions, samples, channels, height, width) under the chosen conditions."""
        from common.metrics.efficientnet import extract_features

        real, known = self.reference.all_features, self.reference.names
        images = draw_images(self.job, self.teacher, latents.flatten(0, 1), self.batch_size)
        found = extract_features(self.reference.extractor, images).unflatten(0, latents.shape[:2]) - real.mean(0)
        targets = torch.stack([real[[name == other for other in known]].mean(0) for name in self.names[chosen]]) - real.mean(0)
        return cosine_similarity(found, targets[:, None], dim=2).mean().item()
