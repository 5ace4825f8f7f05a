"""A trained latent diffusion model as one thing: denoiser, autoencoder, scheduler and text encoders."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.audio.spectrogram import Spectrogram
from common.denoisers.denoiser import GUIDANCE, Conditions, architecture_of
from common.diffusion.autoencoders import decode, pixels_per_latent
from common.diffusion.images import to_uint8
from common.diffusion.latents import encode_images, scale_latents, unscale_latents
from common.diffusion.sampling import describe_scheduler, sample_latents, with_guidance
from common.diffusion.text_encoding import Reading, encode_text, size_conditions

UNCHANGED = ("time_ids", *GUIDANCE)  # conditions that are not of text
PIXELS_AT_ONCE = 2**22  # through an autoencoder: 16 images of 512 x 512, or 4 of 1024 x 1024


def at_once(batch_size: int, height: int, width: int) -> int:
    """How many images go through an autoencoder together: batch_size, or fewer of large ones."""
    return max(1, min(batch_size, PIXELS_AT_ONCE // (height * width)))


@dataclass
class LatentDiffusion:
    """The parts of a diffusers pipeline that pruning and distillation need.

    latent_shape is (channels, height, width) of one latent; tokenizers and text encoders are None without text, the second ones
    None except in Stable Diffusion XL and 3 and FLUX.1, the third ones except in 3. zeros_for_empty: the condition of no
    caption is zeros, not that of "" (XL). told_guidance: the guidance scale that a denoiser which is told it (FLUX.1-dev)
    is trained and scored with: its pipeline's own. instruction: what its pipeline asks of a language model for each caption
    (Sana). distilled: to few steps that are not guided, as its pipeline tells (FLUX.2-klein). sound: what its images stand
    for, where the folder tells (AudioDiffusion's mel).
    """

    name: str
    folder: Path
    denoiser: nn.Module
    autoencoder: nn.Module
    scheduler: Any
    tokenizer: Any = None
    text_encoder: nn.Module | None = None
    tokenizer_2: Any = None
    text_encoder_2: nn.Module | None = None
    tokenizer_3: Any = None
    text_encoder_3: nn.Module | None = None
    zeros_for_empty: bool = False
    told_guidance: float = 1.0
    instruction: str = ""
    distilled: bool = False
    sound: Spectrogram | None = None
    _fingerprint: str = ""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return architecture_of(self.denoiser).latent_shape(self.denoiser)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images that latents of latent_shape become."""
        factor = pixels_per_latent(self.autoencoder.config)
        return (self.latent_shape[1] * factor, self.latent_shape[2] * factor)

    @property
    def networks(self) -> list[nn.Module]:
        """Denoiser, autoencoder and text encoders, as many as there are."""
        return [self.denoiser, self.autoencoder, *self.text_encoders]

    @property
    def text_encoders(self) -> list[nn.Module]:
        """None, one, the two of Stable Diffusion XL and FLUX.1, or the three of 3."""
        found = (self.text_encoder, self.text_encoder_2, self.text_encoder_3)
        return [encoder for encoder in found if encoder is not None]

    @property
    def tokenizers(self) -> list[Any]:
        """As many as there are text encoders."""
        return [each for each in (self.tokenizer, self.tokenizer_2, self.tokenizer_3) if each is not None]

    def with_parts(self, **parts: nn.Module) -> "LatentDiffusion":
        """The same pipeline with other networks: with_parts(denoiser=student)."""
        return replace(self, **parts, _fingerprint="")

    def to(self, device: str | torch.device) -> "LatentDiffusion":
        for network in self.networks:
            network.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @property
    def reading(self) -> Reading:
        """How its text encoders make conditions of captions."""
        architecture: Any = architecture_of(self.denoiser)
        return Reading(architecture.reads_text, getattr(self.denoiser.config, architecture.text_width, 0), self.instruction)

    @torch.no_grad()
    def encode_captions(self, captions: list[str]) -> Conditions:
        """The denoiser's conditions for the captions, a row each (common/diffusion/text_encoding.py); {} without text."""
        if self.text_encoder is None:
            return {}
        conditions = encode_text(list(zip(self.tokenizers, self.text_encoders, strict=True)), captions, self.reading)
        if "text_embeds" in conditions:
            conditions["time_ids"] = size_conditions(*self.image_size, len(captions)).to(self.device)
        return with_guidance(self.denoiser, conditions, self.told_guidance)

    def null_condition(self) -> Conditions:
        """The condition of no caption, one row."""
        conditions = self.encode_captions([""])
        if self.zeros_for_empty:
            conditions |= {name: torch.zeros_like(value) for name, value in conditions.items() if name not in UNCHANGED}
        return conditions

    def sample(
        self, seeds: list[int], captions: list[str], steps: int, guidance_scale: float, batch_size: int = 64, **options: Any
    ) -> torch.Tensor:
        """Final latents (len(seeds), *latent_shape) on the CPU, one of each seed and caption; options: of sample_latents."""
        model = (self.denoiser, options.pop("scheduler", self.scheduler), self.latent_shape)
        with torch.autocast(self.device.type, enabled=False):  # captions are read in float32 whatever the denoiser computes in
            conditions = (self.encode_captions(captions), self.null_condition())
        return sample_latents(*model, seeds, *conditions, steps, guidance_scale, batch_size, **options)

    @torch.no_grad()
    def encode_images(self, images: torch.Tensor, batch_size: int = 64) -> torch.Tensor:
        """Latents (count, *latent_shape) of uint8 images (count, 1 or 3, height, width): posterior means, scaled."""
        encoded = encode_images(self.autoencoder, images, at_once(batch_size, *images.shape[2:]))
        return scale_latents(self.autoencoder, encoded.cpu())

    @torch.no_grad()
    def decode_latents(self, latents: torch.Tensor, batch_size: int = 64) -> torch.Tensor:
        """uint8 images (count, 1 or 3, height, width) on the CPU from latents (count, *latent_shape)."""
        return torch.cat([to_uint8(self.decode(chunk)).cpu() for chunk in latents.split(at_once(batch_size, *self.image_size))])

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images (batch, 1 or 3, height, width), in [-1, 1] but for what the decoder overshoots, on the teacher's device."""
        return decode(self.autoencoder, unscale_latents(self.autoencoder, latents.to(self.device)))

    def fingerprint(self) -> str:
        """Changes with any weight or setting of the denoiser, autoencoder or text encoders, with scheduler and tokenizers.

        It is of what has been loaded, in whatever format it was kept, and names what is computed with it; what names a job
        before anything is loaded is experiments.shared.identity.pipeline_identity.
        """
        if self._fingerprint:
            return self._fingerprint
        described: list[Any] = [describe_scheduler(self.scheduler), self.zeros_for_empty]
        described += [self.instruction] if self.instruction else []
        described += [describe_network(network) for network in self.networks]
        described += [describe_tokenizer(each) for each in self.tokenizers]
        digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
        for network in self.networks:
            for name, tensor in network.state_dict().items():
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
        self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint


def describe_network(network: nn.Module) -> dict[str, Any]:
    """What a network's class and its config.json say of how it computes; not by what, and in what precision, it was saved."""
    config = network.config
    settings = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    written = ("transformers_version", "dtype", "torch_dtype", "architectures")
    kept = {name: value for name, value in settings.items() if not name.startswith("_") and name not in written}
    return {"class": type(network).__name__, **kept}


def describe_tokenizer(tokenizer: Any) -> dict[str, Any]:
    """What decides how a tokenizer splits a text: words, merges, special tokens, length, sides, turns of a chat."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    used = {name: value for name, value in backend.items() if name not in ("padding", "truncation")}  # of its last call
    found = {"backend": used, "length": tokenizer.model_max_length, "special": tokenizer.special_tokens_map}
    sides = {name: getattr(tokenizer, name) for name in ("padding_side", "truncation_side")}
    found |= {name: side for name, side in sides.items() if side != "right"}
    return found | ({"chat_template": tokenizer.chat_template} if tokenizer.chat_template else {})
