"""Diffusion transformers of diffusers: how each is called, and what its blocks pass on."""

from collections.abc import Mapping
from typing import Any

import torch

from common.denoisers.denoiser import Conditions, Denoiser, declare, zeros_like_weights

ONE_STREAM = ("hidden_states",)
TEXT_FIRST = ("encoder_hidden_states", "hidden_states")


class Transformer(Denoiser):
    """A transformer that takes latents as images: its classes say with what arguments, and what comes out."""

    def arguments(self, network: Any, latents: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> dict[str, Any]:
        """The arguments of the network's forward pass by name; timesteps: (batch,)."""
        return {"hidden_states": latents, "timestep": timesteps, **conditions}

    def prediction(self, output: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """What the scheduler takes of the output: a variance, learned besides in as many channels, is left out."""
        return output[:, : latents.shape[1]] if output.shape[1] == 2 * latents.shape[1] else output

    def predict(self, network: Any, latents: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        timesteps = torch.as_tensor(timesteps, device=latents.device).expand(len(latents))
        output = network(**self.arguments(network, latents, timesteps, conditions), return_dict=False)[0]
        return self.prediction(output, latents)


class PixArt(Transformer):
    """PixArt-alpha (arXiv 2310.00426) and PixArt-Sigma (2403.04692): one stream that attends to text.

    `resolution` and `aspect_ratio` (batch, 2) and (batch, 1) are conditions of the networks that take them (alpha at 1024).
    """

    streams: Mapping[str, tuple[str, ...]] = {"BasicTransformerBlock": ONE_STREAM}
    masks_text = True
    added = ("resolution", "aspect_ratio")

    def arguments(self, network: Any, latents: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> dict[str, Any]:
        plain = {name: value for name, value in conditions.items() if name not in self.added}
        added = {name: conditions.get(name) for name in self.added}
        return super().arguments(network, latents, timesteps, plain) | {"added_cond_kwargs": added}

    def probe_conditions(self, network: Any, tokens: int) -> Conditions:
        config = network.config
        conditions = {
            "encoder_hidden_states": zeros_like_weights(network, 1, tokens, config.caption_channels),
            "encoder_attention_mask": zeros_like_weights(network, 1, tokens) + 1,
        }
        if network.use_additional_conditions:
            conditions |= {"resolution": zeros_like_weights(network, 1, 2), "aspect_ratio": zeros_like_weights(network, 1, 1)}
        return conditions


declare(PixArt(), "PixArtTransformer2DModel")
