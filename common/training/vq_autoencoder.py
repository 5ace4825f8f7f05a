"""The autoencoder of LDM-4 (arXiv 2112.10752): latents that the decoder rounds to the nearest entry of a codebook."""

from typing import Any

import torch

from common.runtime.collectives import whole_batch
from common.runtime.seeding import generator_for
from common.training.autoencoder import AutoencoderTraining

USED_WITHIN = 100  # steps after which an entry counts as unused in the log, where none is moved


def divergence_from_normal(latents: torch.Tensor) -> torch.Tensor:
    """KL(N(mean, covariance) || N(0, 1)) of latents (batch, channels, height, width), all places as one sample.

    In float32 whatever the precision of training: sums over all places leave the range of fp16.
    """
    with torch.autocast(latents.device.type, enabled=False):
        vectors = latents.float().permute(1, 0, 2, 3).flatten(1)
        mean, covariance = vectors.mean(1), vectors.cov()
        ridge = 1e-4 * torch.eye(len(mean), device=latents.device)
        return 0.5 * (covariance.trace() + mean.square().sum() - len(mean) - torch.logdet(covariance + ridge))


class VQTraining(AutoencoderTraining):
    """Adds VQ-VAE's codebook and commitment terms, as diffusers' quantiser weighs them, and a spread. For diffusers' VQModel.

    spread_weight: of the Kullback-Leibler divergence between a normal of the batch's mean and covariance and the standard
    normal. Without it the latents fall onto a curve in their space: a channel that is small at the start stays unused.

    An entry that no latent came nearest to in `revive_every` steps is moved to a random latent of the batch, else most of a
    large codebook stays where it began. At the first step that is all of them: the codebook starts on the data. None moves
    no entry, for a codebook that is trained already.
    """

    unused_steps: torch.Tensor

    def __init__(self, *arguments: Any, codebook_weight: float, spread_weight: float, revive_every: int | None, **options: Any):
        super().__init__(*arguments, **options)
        self.codebook_weight, self.spread_weight, self.revive_every = codebook_weight, spread_weight, revive_every
        self.unused_after = revive_every or USED_WITHIN  # steps
        entries = self.autoencoder.config.num_vq_embeddings
        # in the checkpoint: resuming is exact
        self.register_buffer("unused_steps", torch.full((entries,), revive_every or 0))

    def reconstruct(self, images: torch.Tensor, positions: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        latents = self.autoencoder.encode(images).latents
        if self.revive_every is not None and self.global_step % self.revive_every == 0:
            self.revive(whole_batch(latents.detach()))
        quantized, codebook, (_, _, nearest) = self.autoencoder.quantize(latents)
        self.unused_steps += 1
        self.unused_steps[whole_batch(nearest.flatten())] = 0
        spread = divergence_from_normal(whole_batch(latents))
        self.log_dict({"codebook": codebook, "spread": spread}, sync_dist=True)
        self.log("used_entries", (self.unused_steps < self.unused_after).float().mean())
        decoded = self.autoencoder.decode(quantized, force_not_quantize=True).sample
        return decoded, self.codebook_weight * codebook + self.spread_weight * spread

    @torch.no_grad()
    def revive(self, latents: torch.Tensor) -> None:
        """Moves the dead entries to latents (batch, channels, height, width) chosen by the seed and the step."""
        dead = (self.unused_steps >= self.unused_after).nonzero().flatten()
        vectors = latents.permute(0, 2, 3, 1).flatten(0, 2)
        chosen = torch.randint(len(vectors), (len(dead),), generator=generator_for(self.seed, self.global_step))
        self.autoencoder.quantize.embedding.weight[dead] = vectors[chosen.to(vectors.device)]

    @torch.no_grad()
    def normalize_latents(self, latents: torch.Tensor) -> None:
        """Each channel of zero mean, all together of unit deviation: one factor for all leaves the nearest entry nearest."""
        mean = latents.mean((0, 2, 3))
        std = (latents - mean[:, None, None]).std()
        outward, inward = self.autoencoder.quant_conv, self.autoencoder.post_quant_conv
        outward.weight /= std
        outward.bias.copy_((outward.bias - mean) / std)
        codebook = self.autoencoder.quantize.embedding.weight
        codebook.copy_((codebook - mean) / std)
        inward.bias += (inward.weight[:, :, 0, 0] * mean).sum(1)
        inward.weight *= std
        self.autoencoder.register_to_config(scaling_factor=1.0)
