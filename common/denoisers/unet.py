"""U-Nets of diffusers: UNet2DConditionModel and UNet2DModel."""

from typing import Any

import torch

from common.denoisers.denoiser import Conditions, Denoiser, declare, zeros_like_weights

ADDED = ("text_embeds", "time_ids")  # what Stable Diffusion XL's U-Net takes inside added_cond_kwargs


def guidance_size(network: Any) -> int | None:
    """How many numbers tell a latent consistency model its guidance scale; None for a denoiser that is not told."""
    return getattr(network, "config", {}).get("time_cond_proj_dim")


def keyword_arguments(conditions: Conditions) -> dict[str, Any]:
    """The conditions as a U-Net takes them: by name, those of ADDED in a dictionary of their own."""
    added = {name: value for name, value in conditions.items() if name in ADDED}
    plain = {name: value for name, value in conditions.items() if name not in ADDED}
    return {**plain, "added_cond_kwargs": added} if added else plain


class UNet(Denoiser):
    """UNet2DConditionModel and UNet2DModel."""

    part = "unet"
    text_width = "cross_attention_dim"

    def features(self, network: Any) -> list[str]:
        return ["down_blocks.*", "up_blocks.*"]

    def predict(self, network: Any, latents: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        return network(latents, timesteps, **keyword_arguments(conditions)).sample

    def guidance(self, network: Any, scale: float) -> Conditions:
        """Of a latent consistency model `timestep_cond` (1, guidance_size): sines and cosines of 1000 * (scale - 1).

        As in diffusers' pipelines (Luo et al. 2023, latent consistency models).
        """
        size = guidance_size(network)
        if size is None:
            return {}
        half = size // 2
        frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(torch.log(torch.tensor(10000.0)) / (half - 1)))
        angles = 1000.0 * torch.tensor([scale - 1], dtype=torch.float32)[:, None] * frequencies
        return {"timestep_cond": torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()], 1), (0, size % 2))}

    def probe_conditions(self, network: Any, tokens: int) -> Conditions:
        config = network.config
        if "cross_attention_dim" not in config:
            return {}
        conditions = {"encoder_hidden_states": zeros_like_weights(network, 1, tokens, config.cross_attention_dim)}
        if (size := guidance_size(network)) is not None:
            conditions["timestep_cond"] = zeros_like_weights(network, 1, size)
        if config.addition_embed_type == "text_time":
            pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            conditions |= {"text_embeds": zeros_like_weights(network, 1, pooled), "time_ids": zeros_like_weights(network, 1, 6)}
        return conditions


declare(UNet(), "UNet2DConditionModel", "UNet2DModel")
