"""How well samples fit their captions, over the offline extractor: a stand-in for CLIP score where there is no CLIP."""

from pathlib import Path

import torch
from omegaconf import DictConfig
from torch.nn.functional import cosine_similarity

from common.models.latent_diffusion import Teacher
from common.runtime.content import content_name
from experiments.shared.identity import as_dict, data_identity, identified


class CaptionAlignment:
    """Mean cosine similarity between the features of samples and of the real images of their captions' names.

    Features are centred by the mean of all real images, as in caption retrieval. `names`: one per condition, of training
    captions, as the calibration's are. content: changes with any of them, and with the images.
    """

    def __init__(self, cfg: DictConfig, teacher: Teacher, names: list[str], cache: Path):
        self.cfg, self.teacher, self.names, self.cache = cfg, teacher, names, cache
        self.reference = None
        features = identified(as_dict(cfg.task.features))
        self.content = content_name(features, data_identity(cfg), names, cfg.evaluation.batch_size)

    def __call__(self, latents: torch.Tensor, chosen: slice) -> float:
        """The alignment of final latents (conditions, samples, channels, height, width) under the chosen conditions."""
        from common.metrics.efficientnet import extract_features
        from experiments.evaluation.real_features import Reference
        from experiments.evaluation.samples import draw_images

        if self.reference is None:
            self.reference = Reference(self.cfg, "train", self.cache, self.teacher.device)
        real, known = self.reference.all_features, self.reference.all_names
        images = draw_images(self.cfg, self.teacher, latents.flatten(0, 1), self.cfg.evaluation.batch_size)
        found = extract_features(self.reference.extractor, images).unflatten(0, latents.shape[:2]) - real.mean(0)
        targets = torch.stack([real[[name == other for other in known]].mean(0) for name in self.names[chosen]]) - real.mean(0)
        return cosine_similarity(found, targets[:, None], dim=2).mean().item()
