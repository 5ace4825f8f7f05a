"""Diffusion transformers of diffusers: how each is called, and what its blocks pass on."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from common.denoisers.denoiser import Conditions, Denoiser, declare, zeros_like_weights

ONE_STREAM = ("hidden_states",)
TEXT_FIRST = ("encoder_hidden_states", "hidden_states")
ONE_LIST = {"transformer_blocks": "num_layers"}
TWO_LISTS = {**ONE_LIST, "single_transformer_blocks": "num_single_layers"}


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
    depths = ONE_LIST
    text_encoders = ("T5EncoderModel", "CLIPTextModel")
    reads_text = "masked"
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


class Sana(Transformer):
    """Sana (arXiv 2410.10629): one stream of linear attention, without patches, that attends to a language model's text."""

    streams: Mapping[str, tuple[str, ...]] = {"SanaTransformerBlock": ONE_STREAM}
    depths = ONE_LIST
    text_encoders = ("Gemma2Model",)
    autoencoders = ("AutoencoderDC",)
    reads_text = "instructed"

    def arguments(self, network: Any, latents: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> dict[str, Any]:
        return super().arguments(network, latents, timesteps * network.config.timestep_scale, conditions)

    def probe_conditions(self, network: Any, tokens: int) -> Conditions:
        conditions = {
            "encoder_hidden_states": zeros_like_weights(network, 1, tokens, network.config.caption_channels),
            "encoder_attention_mask": zeros_like_weights(network, 1, tokens) + 1,
        }
        return conditions | ({"guidance": zeros_like_weights(network, 1)} if network.config.guidance_embeds else {})


class DiT(Transformer):
    """DiT (arXiv 2212.09748), conditioned on classes: `class_labels` (batch,).

    What the first block makes of timestep and class also conditions the output: it cannot go as a whole.
    """

    streams: Mapping[str, tuple[str, ...]] = {"BasicTransformerBlock": ONE_STREAM}
    depths = ONE_LIST
    read_from = ("transformer_blocks.0",)

    def probe_conditions(self, network: Any, tokens: int) -> Conditions:
        return {"class_labels": zeros_like_weights(network, 1).long()}


class StableDiffusion3(Transformer):
    """Stable Diffusion 3 (arXiv 2403.03206): two streams, image and text, which attend to each other."""

    streams: Mapping[str, tuple[str, ...]] = {"JointTransformerBlock": TEXT_FIRST}
    depths = ONE_LIST
    text_width = "joint_attention_dim"
    text_encoders = ("CLIPTextModelWithProjection",)
    reads_text = "joint"

    def counted_anew(self, config: Mapping[str, Any], kept: Sequence[int], depth: str) -> dict[str, Any]:
        dual = tuple(index for index, number in enumerate(kept) if number in config["dual_attention_layers"])
        return {depth: len(kept), "dual_attention_layers": dual}

    def ended(
        self, weights: dict[str, torch.Tensor], config: Mapping[str, Any], numbers: Mapping[str, str]
    ) -> dict[str, torch.Tensor]:
        """In the last block text is only read: another one becomes such a block, whose text nobody reads, without a loss."""
        last = f"transformer_blocks.{config['num_layers'] - 1}"
        return as_last_block(weights, last) if f"{last}.ff_context.net.2.weight" in weights else weights

    def probe_conditions(self, network: Any, tokens: int) -> Conditions:
        config = network.config
        return {
            "encoder_hidden_states": zeros_like_weights(network, 1, tokens, config.joint_attention_dim),
            "pooled_projections": zeros_like_weights(network, 1, config.pooled_projection_dim),
        }


def as_last_block(weights: Mapping[str, torch.Tensor], site: str) -> dict[str, torch.Tensor]:
    """Stable Diffusion 3's weights with the block at `site` as the last one, in which text is only read.

    Its feed-forward and output of text go; of the six parts that its norm of text gave, shift and scale stay, in the order
    (scale, shift) of the last block's own norm.
    """
    left = tuple(f"{site}.{part}." for part in ("norm2_context", "ff_context", "attn.to_add_out"))
    found = {name: value for name, value in weights.items() if not name.startswith(left)}
    for kind in ("weight", "bias"):
        name = f"{site}.norm1_context.linear.{kind}"
        shift, scale = weights[name].chunk(6)[:2]
        found[name] = torch.cat([scale, shift])
    return found


class Packed(Transformer):
    """Networks that take latents as tokens, patches of 2 x 2, and timesteps from 0 to 1.

    Their classes have no size of latents in their configuration: 128 (1024 pixels), or what an entry sample_size tells.
    """

    text_width = "joint_attention_dim"
    size = 128

    def asks_for_sigmas(self, config: Any) -> bool:
        return not config.get("use_flow_sigmas")

    def latent_shape(self, network: Any) -> tuple[int, int, int]:
        size = network.config.get("sample_size", self.size)
        height, width = (size, size) if isinstance(size, int) else size
        return (network.config.in_channels // 4, height, width)

    def arguments(self, network: Any, latents: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> dict[str, Any]:
        tokens = tokens_of(latents)
        return {"hidden_states": tokens, "timestep": (timesteps / 1000).to(latents), **conditions}

    def predict(self, network: Any, latents: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        timesteps = torch.as_tensor(timesteps, device=latents.device).expand(len(latents))
        output = network(**self.arguments(network, latents, timesteps, conditions), return_dict=False)[0]
        return latents_of(output, latents.shape)

    def guidance(self, network: Any, scale: float) -> Conditions:
        """Of a guidance-distilled network `guidance` (1,): the scale itself."""
        return {"guidance": zeros_like_weights(network, 1).float() + scale} if network.config.get("guidance_embeds") else {}


class Flux(Packed):
    """FLUX.1: blocks of two streams, then of one that holds both; `guidance` (batch,) where the network is told it.

    Text is that of a T5, and the pooled state of a CLIP.
    """

    streams: Mapping[str, tuple[str, ...]] = dict.fromkeys(("FluxTransformerBlock", "FluxSingleTransformerBlock"), TEXT_FIRST)
    depths = TWO_LISTS
    reads_text = "pooled"

    def arguments(self, network: Any, latents: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> dict[str, Any]:
        places = {"txt_ids": latents.new_zeros(conditions["encoder_hidden_states"].shape[1], 3)}
        return super().arguments(network, latents, timesteps, conditions) | places | {"img_ids": places_of(latents, 3)}

    def probe_conditions(self, network: Any, tokens: int) -> Conditions:
        config = network.config
        return {
            "encoder_hidden_states": zeros_like_weights(network, 1, tokens, config.joint_attention_dim),
            "pooled_projections": zeros_like_weights(network, 1, config.pooled_projection_dim),
            **self.guidance(network, 0.0),
        }


class Flux2(Packed):
    """FLUX.2: as FLUX.1, with four coordinates for a place, the last one of text, which is a language model's."""

    streams: Mapping[str, tuple[str, ...]] = {"Flux2TransformerBlock": TEXT_FIRST, "Flux2SingleTransformerBlock": ONE_STREAM}
    depths = TWO_LISTS
    autoencoders = ("AutoencoderKLFlux2",)
    reads_text = "chat"

    def time_shift(self, config: Any, tokens: int, steps: int) -> float:
        """Linear in tokens, by two lines that were fitted at 10 and at 200 steps, and linear in steps between them.

        Beyond 4,300 tokens by the second line alone (FLUX.2's pipelines in diffusers).
        """
        few, many = 8.73809524e-05 * tokens + 1.89833333, 0.00016927 * tokens + 0.45666666
        return many if tokens > 4300 else many + (few - many) * (200 - steps) / 190

    def arguments(self, network: Any, latents: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> dict[str, Any]:
        text = latents.new_zeros(conditions["encoder_hidden_states"].shape[1], 4)
        text[:, 3] = torch.arange(len(text), device=text.device)
        places = {"txt_ids": text, "img_ids": places_of(latents, 4)}
        return super().arguments(network, latents, timesteps, conditions) | places

    def probe_conditions(self, network: Any, tokens: int) -> Conditions:
        text = zeros_like_weights(network, 1, tokens, network.config.joint_attention_dim)
        return {"encoder_hidden_states": text, **self.guidance(network, 0.0)}


class QwenImage(Packed):
    """Qwen-Image (arXiv 2508.02324): blocks of two streams; `encoder_hidden_states_mask` (batch, tokens) tells padding.

    Text is a language model's.
    """

    streams: Mapping[str, tuple[str, ...]] = {"QwenImageTransformerBlock": TEXT_FIRST}
    depths = ONE_LIST
    autoencoders = ("AutoencoderKLQwenImage",)
    reads_text = "described"

    def asks_for_sigmas(self, config: Any) -> bool:
        return True

    def guided(self, without: torch.Tensor, conditioned: torch.Tensor, scale: float) -> torch.Tensor:
        """Of the length that the conditioned prediction has, token by token (its pipeline in diffusers)."""
        found = tokens_of(super().guided(without, conditioned, scale))
        length = tokens_of(conditioned).norm(dim=-1, keepdim=True)
        return latents_of(found * length / found.norm(dim=-1, keepdim=True), conditioned.shape)

    def arguments(self, network: Any, latents: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> dict[str, Any]:
        shape = (1, latents.shape[2] // 2, latents.shape[3] // 2)
        return super().arguments(network, latents, timesteps, conditions) | {"img_shapes": [[shape]] * len(latents)}

    def probe_conditions(self, network: Any, tokens: int) -> Conditions:
        return {
            "encoder_hidden_states": zeros_like_weights(network, 1, tokens, network.config.joint_attention_dim),
            "encoder_hidden_states_mask": zeros_like_weights(network, 1, tokens).long() + 1,
        }


def tokens_of(latents: torch.Tensor) -> torch.Tensor:
    """(batch, patches, 4 * channels) of latents (batch, channels, height, width): patches of 2 x 2, row by row."""
    batch, channels, height, width = latents.shape
    patches = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, height // 2 * (width // 2), 4 * channels)


def latents_of(tokens: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """tokens_of backwards, to latents of the shape (batch, channels, height, width)."""
    batch, channels, height, width = shape
    return tokens.view(batch, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(shape)


def places_of(latents: torch.Tensor, coordinates: int) -> torch.Tensor:
    """(patches, coordinates): the row and column of each patch at the coordinates 1 and 2, else zeros."""
    height, width = latents.shape[2] // 2, latents.shape[3] // 2
    places = latents.new_zeros(height, width, coordinates)
    places[..., 1] += torch.arange(height, device=latents.device)[:, None]
    places[..., 2] += torch.arange(width, device=latents.device)[None]
    return places.view(-1, coordinates)


declare(PixArt(), "PixArtTransformer2DModel")
declare(Sana(), "SanaTransformer2DModel")
declare(DiT(), "DiTTransformer2DModel")
declare(StableDiffusion3(), "SD3Transformer2DModel")
declare(Flux(), "FluxTransformer2DModel")
declare(Flux2(), "Flux2Transformer2DModel")
declare(QwenImage(), "QwenImageTransformer2DModel")
