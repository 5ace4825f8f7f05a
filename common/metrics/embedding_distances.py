"""Distances over the embeddings of large vision networks, which agree better with people than those over Inception: CMMD and
the Fréchet distance over DINOv2. Networks are transformers'.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image

from common.errors import InputError
from common.metrics.clip_scores import embedding, whole_network
from common.metrics.distances import check_pair, frechet_of, gaussian_kernel, kernel_distance_of
from common.metrics.inception import check_colour
from common.metrics.jackknife import Figures
from common.settings import AtLeastOne


class EmbeddingDistance:
    """A distance of images to real ones over the embeddings of a network.

    name: under which it is given. model: a folder or hub name of the network; revision: on the hub. size: in pixels, to which
    images are resized as they are, by Pillow, bicubic. batch_size: of images.
    """

    needs_real = True
    mean: tuple[float, ...]  # of pixels in [0, 1], by channel
    deviation: tuple[float, ...]

    def __init__(self, name: str, model: str, revision: str | None, size: AtLeastOne, batch_size: AtLeastOne):
        self.name, self.model, self.revision, self.size, self.batch_size = name, model, revision, size, batch_size

    @property
    def kind(self) -> Any:
        """The network's class."""
        raise NotImplementedError

    def wrong_size(self, config: Any) -> str:
        """What is wrong with `size` for a network of this configuration, if anything."""
        raise NotImplementedError

    def embeddings(self, pixels: torch.Tensor) -> torch.Tensor:
        """(count, width) on the CPU, of what `pixels` gives."""
        raise NotImplementedError

    def load(self, device: torch.device) -> None:
        """The network; InputError where it is neither on the disk nor to be had, lacks weights or sees another size."""
        network = whole_network(self.kind, self.model, self.revision)
        wrong = self.wrong_size(network.config)
        if wrong:
            raise InputError(f"{self.name}.size={self.size}: {wrong}.")
        self.network, self.device = network.to(device).eval().requires_grad_(False), device

    def rows(self, images: torch.Tensor, captions: list[str] | None) -> torch.Tensor:
        """Embeddings (count, width) of uint8 images (count, 3, height, width)."""
        check_colour(self.name, images)
        return torch.cat([self.embeddings(self.pixels(batch).to(self.device)) for batch in images.split(self.batch_size)])

    def pixels(self, images: torch.Tensor) -> torch.Tensor:
        """What the network sees (count, 3, size, size)."""
        side = (self.size, self.size)
        pictures = [
            Image.fromarray(image).resize(side, Image.Resampling.BICUBIC) for image in images.permute(0, 2, 3, 1).numpy()
        ]
        scaled = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
        return (scaled - torch.tensor(self.mean).view(3, 1, 1)) / torch.tensor(self.deviation).view(3, 1, 1)


class ClipKernelDistance(EmbeddingDistance):
    """CMMD (Jayasumana et al. 2024, arXiv 2401.09603), times 1000: the squared MMD over CLIP's image embeddings scaled to
    length 1, by the kernel exp(-|a - b|^2 / 200). The unbiased one, without the diagonals, where the authors' code has them.

    model: a CLIPVisionModelWithProjection; the paper: ViT-L/14 at 336 pixels.
    """

    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's

    @property
    def kind(self) -> Any:
        from transformers import CLIPVisionModelWithProjection

        return CLIPVisionModelWithProjection

    def wrong_size(self, config: Any) -> str:
        return "" if self.size == config.image_size else f"{self.model} sees {config.image_size} pixels"

    @torch.no_grad()
    def embeddings(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.network(pixel_values=pixels).image_embeds.float().cpu()

    def figures(self, rows: torch.Tensor, real: torch.Tensor | None, seed: int) -> Figures:
        assert real is not None  # needs_real
        distance = kernel_distance_of(real, rows, gaussian_kernel)
        return lambda kept: {self.name: 1000 * distance(kept)}


class DinoFrechetDistance(EmbeddingDistance):
    """The Fréchet distance over DINOv2's class token (Stein et al. 2023, arXiv 2306.04675).

    model: a Dinov2Model; the paper: ViT-L/14 (facebook/dinov2-large) at 224 pixels, bicubic.
    """

    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's

    @property
    def kind(self) -> Any:
        from transformers import Dinov2Model

        return Dinov2Model

    def wrong_size(self, config: Any) -> str:
        return f"a multiple of the {config.patch_size} pixels of a patch is needed" if self.size % config.patch_size else ""

    @torch.no_grad()
    def embeddings(self, pixels: torch.Tensor) -> torch.Tensor:
        """The class token after the last norm (count, width)."""
        return embedding(self.network(pixel_values=pixels)).float().cpu()

    def figures(self, rows: torch.Tensor, real: torch.Tensor | None, seed: int) -> Figures:
        assert real is not None  # needs_real
        check_pair(real, rows)
        distance = frechet_of(real.double().mean(0), torch.cov(real.double().T), rows)
        return lambda kept: {self.name: distance(kept)}
