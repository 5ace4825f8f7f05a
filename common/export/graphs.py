"""The networks of a pipeline as other runtimes take them: tensors in, tensors out, by the names that optimum uses."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from common.denoisers.unet import guidance_size
from common.errors import InputError
from common.models.latent_diffusion import LatentDiffusion

Tensors = dict[str, torch.Tensor]
TIMESTEPS = 1000
LONGEST_SIDE = 1024  # what the time_ids of Stable Diffusion XL tell, in pixels


@dataclass(frozen=True)
class ExportedPart:
    """A network of a pipeline with named inputs and outputs.

    axes: the dynamic axes of every input and output by name ("batch", "height", "width", "tokens"); height and width are
    multiples of `factor`. draw(batch, larger, generator) gives random inputs, at the network's own size or a larger one.
    """

    name: str
    network: nn.Module
    inputs: dict[str, dict[int, str]]
    outputs: dict[str, dict[int, str]]
    draw: Callable[[int, bool, torch.Generator], Tensors]
    factor: int = 1

    @torch.no_grad()
    def run(self, inputs: Tensors) -> Tensors:
        """The outputs in PyTorch."""
        found = self.network(*inputs.values())
        return dict(zip(self.outputs, found if isinstance(found, tuple) else (found,), strict=True))


class PlainDenoiser(nn.Module):
    """A denoiser of diffusers with each condition as an argument of its own; gives the tensor alone."""

    def __init__(self, denoiser: nn.Module):
        super().__init__()
        self.denoiser = denoiser

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        text_embeds: torch.Tensor | None = None,
        time_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        conditions: dict[str, Any] = {}
        if encoder_hidden_states is not None:
            conditions["encoder_hidden_states"] = encoder_hidden_states
        if text_embeds is not None:
            conditions["added_cond_kwargs"] = {"text_embeds": text_embeds, "time_ids": time_ids}
        return self.denoiser(sample, timestep, return_dict=False, **conditions)[0]


class Decoder(nn.Module):
    """The decoding half of an autoencoder: latents (batch, channels, height, width), unscaled -> images in [-1, 1]."""

    def __init__(self, autoencoder: nn.Module):
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latent_sample: torch.Tensor) -> torch.Tensor:
        return self.autoencoder.decode(latent_sample, return_dict=False)[0]


class TextEncoder(nn.Module):
    """A text encoder whose outputs are a flat tuple, in the order of flat_outputs."""

    def __init__(self, encoder: nn.Module, hidden_states: bool):
        super().__init__()
        self.encoder, self.hidden_states = encoder, hidden_states

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(flat_outputs(self.encoder(input_ids, output_hidden_states=self.hidden_states)).values())


def flat_outputs(output: Any) -> Tensors:
    """The tensors of a transformers output by name; a tuple of them as "hidden_states.0", "hidden_states.1", ..."""
    found: Tensors = {}
    for name, value in output.items():
        found |= {f"{name}.{index}": each for index, each in enumerate(value)} if isinstance(value, tuple) else {name: value}
    return found


def denoiser_part(teacher: LatentDiffusion) -> ExportedPart:
    """ "unet": sample, timestep and conditions -> out_sample. timestep is one number per row, or a single one for all rows."""
    config = teacher.denoiser.config
    if guidance_size(teacher.denoiser) is not None:
        raise InputError("Exported denoisers do not take a guidance scale as a condition, as latent consistency models do.")
    channels, height, width = teacher.latent_shape
    factor = 2 ** (len(config.block_out_channels) - 1)
    image_axes, rows = {0: "batch", 2: "height", 3: "width"}, {0: "batch"}
    inputs = {"sample": image_axes, "timestep": rows}
    shapes: dict[str, tuple[int, ...]] = {}
    if "cross_attention_dim" in config:
        length = teacher.text_encoder.config.max_position_embeddings if teacher.text_encoder is not None else 77
        shapes["encoder_hidden_states"] = (length, config.cross_attention_dim)
        inputs["encoder_hidden_states"] = {0: "batch", 1: "tokens"}
        if config.addition_embed_type == "text_time":
            pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            shapes |= {"text_embeds": (pooled,), "time_ids": (6,)}
            inputs |= {"text_embeds": rows, "time_ids": rows}

    def draw(batch: int, larger: bool, generator: torch.Generator) -> Tensors:
        rows = height + factor if larger else height
        drawn = {
            "sample": torch.randn(batch, channels, rows, width, generator=generator),
            "timestep": torch.randint(0, TIMESTEPS, (batch,), generator=generator),
        }
        drawn |= {name: torch.randn(batch, *shape, generator=generator) for name, shape in shapes.items()}
        if "time_ids" in drawn:
            drawn["time_ids"] = torch.randint(0, LONGEST_SIDE, (batch, 6), generator=generator).float()
        return drawn

    return ExportedPart("unet", PlainDenoiser(teacher.denoiser), inputs, {"out_sample": image_axes}, draw, factor)


def decoder_part(teacher: LatentDiffusion) -> ExportedPart:
    """ "vae_decoder": latent_sample -> sample.

    Random latents of a VQModel lie near entries of its codebook, where no rounding decides which entry is the nearest.
    """
    autoencoder = teacher.autoencoder
    _, height, width = teacher.latent_shape
    codes = autoencoder.quantize.embedding.weight if hasattr(autoencoder, "quantize") else None

    def draw(batch: int, larger: bool, generator: torch.Generator) -> Tensors:
        rows = height + 1 if larger else height
        channels = teacher.latent_shape[0] if codes is None else codes.shape[1]
        noise = torch.randn(batch, channels, rows, width, generator=generator)
        if codes is None:
            return {"latent_sample": noise}
        nearest = torch.cdist(codes, codes).fill_diagonal_(torch.inf).min(1).values
        chosen = torch.randint(0, len(codes), (batch, rows, width), generator=generator)
        shift = 0.25 * nearest[chosen].unsqueeze(1) * noise / noise.norm(dim=1, keepdim=True)
        return {"latent_sample": codes[chosen].permute(0, 3, 1, 2) + shift}

    axes = {0: "batch", 2: "height", 3: "width"}
    return ExportedPart("vae_decoder", Decoder(autoencoder), {"latent_sample": axes}, {"sample": {0: "batch"}}, draw)


def text_encoder_part(name: str, encoder: nn.Module, hidden_states: bool) -> ExportedPart:
    """`name`: input_ids (batch, tokens), padded to the encoder's own length -> its outputs by transformers' names."""
    config = encoder.config

    def draw(batch: int, larger: bool, generator: torch.Generator) -> Tensors:
        shape = (batch, config.max_position_embeddings)
        return {"input_ids": torch.randint(0, config.vocab_size, shape, generator=generator)}

    with torch.no_grad():
        probe = encoder(draw(1, False, torch.Generator().manual_seed(0))["input_ids"], output_hidden_states=hidden_states)
    outputs = {output: {0: "batch"} for output in flat_outputs(probe)}
    return ExportedPart(name, TextEncoder(encoder, hidden_states).eval(), {"input_ids": {0: "batch"}}, outputs, draw)


def exported_parts(teacher: LatentDiffusion) -> list[ExportedPart]:
    """Denoiser, decoder and text encoders, as many as there are; two of them (Stable Diffusion XL) give all hidden states."""
    encoders = teacher.text_encoders
    texts = [
        text_encoder_part(name, encoder, len(encoders) > 1)
        for name, encoder in zip(("text_encoder", "text_encoder_2"), encoders, strict=False)
    ]
    return [denoiser_part(teacher), decoder_part(teacher), *texts]
