"""What the project asks of a denoiser, and which architecture a network is of.

A U-Net is what nothing else is declared to be. Another architecture is a subclass of Denoiser, declared for the names of its
classes in diffusers (common/denoisers/transformers.py has those of the field), or from outside by `declare`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Conditions = dict[str, torch.Tensor]
"""What a denoiser is conditioned on by the names of its arguments, each (batch, ...); empty for unconditional models."""
CLIP_TOKENS = 77
GUIDANCE = ("timestep_cond", "guidance")
"""Conditions that tell a network its guidance scale: such a one is not guided by a second pass."""


@dataclass(frozen=True)
class Block:
    """A block of a diffusion transformer: what it passes on when it is removed, and whether it may be as a whole.

    streams: names of arguments of its forward pass, in the order in which it returns them.
    """

    module: nn.Module
    streams: tuple[str, ...]
    removable: bool = True


class Denoiser:
    """How the networks of one architecture are called: latents in, a prediction of their shape out.

    part: the denoiser's name in a pipeline's folder. text_width: the entry of its configuration that tells how wide the
    states of text are. text_encoders: classes of transformers, of which its first text encoder is one. autoencoders: classes
    of diffusers, of which its autoencoder is one. reads_text: how captions become its conditions
    (common.diffusion.text_encoding). streams: by the class name of each block that a method may remove, what it passes on, by
    the names of its own arguments and in the order in which it returns them; none for U-Nets, whose layers tell that by their
    structure (common.pruning.layers). read_from: paths of blocks inside which the network itself reads, so that they cannot
    go whole. depths: by the path of each list of blocks the entry of the configuration that tells how many it has; none where
    blocks cannot be counted anew.
    """

    part: str = "transformer"
    text_width: str = "caption_channels"
    text_encoders: tuple[str, ...] = ("CLIPTextModel",)
    autoencoders: tuple[str, ...] = ("AutoencoderKL", "VQModel")
    reads_text: str = "states"
    read_from: tuple[str, ...] = ()
    depths: Mapping[str, str] = {}
    streams: Mapping[str, tuple[str, ...]] = {}

    def blocks(self, network: nn.Module) -> Iterator[tuple[str, Block]]:
        """The blocks by their paths, in the order of computation; none of a U-Net."""
        for site, module in network.named_modules():
            for kind in type(module).__mro__:
                if kind.__name__ in self.streams:
                    yield site, Block(module, self.streams[kind.__name__], site not in self.read_from)
                    break

    def counted_anew(self, config: Mapping[str, Any], kept: Sequence[int], depth: str) -> dict[str, Any]:
        """The entries of the configuration that change when a list of blocks keeps those of these numbers."""
        return {depth: len(kept)}

    def ended(
        self, weights: dict[str, torch.Tensor], config: Mapping[str, Any], numbers: Mapping[str, str]
    ) -> dict[str, torch.Tensor]:
        """The weights of blocks that are counted anew, with what another last block asks for; numbers: old paths by new."""
        return weights

    def features(self, network: nn.Module) -> list[str]:
        """Where a student is compared with its teacher inside, where nothing else is asked for: paths, or patterns of them."""
        return [site for site, _ in self.blocks(network)]

    def predict(self, network: Any, latents: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """The prediction (batch, channels, height, width) for latents of that shape.

        timesteps: as the scheduler tells them, one number or (batch,).
        """
        raise NotImplementedError

    def guidance(self, network: Any, scale: float) -> Conditions:
        """One row of the condition (GUIDANCE) that tells the network its guidance scale; {} for one that is not told."""
        return {}

    def guided(self, without: torch.Tensor, conditioned: torch.Tensor, scale: float) -> torch.Tensor:
        """Classifier-free guidance (Ho and Salimans 2022) from predictions (batch, ...) without and with a condition."""
        return without + scale * (conditioned - without)

    def asks_for_sigmas(self, config: Any) -> bool:
        """Whether its pipeline asks a scheduler of this configuration for noise levels from 1 to 1 / steps, before any shift,
        and not for the scheduler's own."""
        return False

    def time_shift(self, config: Any, tokens: int, steps: int) -> float:
        """The logarithm of a flow's shift, which depends on the size of the image: linear in the number of its tokens.

        config: of the scheduler; tokens: patches of 2 x 2 latents (FLUX's, Stable Diffusion 3.5's and Qwen-Image's pipelines
        in diffusers).
        """
        first, last = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        return low + (high - low) / (last - first) * (tokens - first)

    def latent_shape(self, network: Any) -> tuple[int, int, int]:
        """(channels, height, width) of one latent."""
        size = network.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return (network.config.in_channels, height, width)

    def probe_conditions(self, network: Any, tokens: int) -> Conditions:
        """Zeros of the right shapes for one row, with so many tokens of text, on the network's device."""
        raise NotImplementedError


ARCHITECTURES: dict[str, Denoiser] = {}
"""By the name of the network's class."""


def declare(denoiser: Denoiser, *class_names: str) -> None:
    """Says that networks of the classes called so are of this architecture."""
    ARCHITECTURES.update(dict.fromkeys(class_names, denoiser))


def architecture_of(network: Any) -> Denoiser:
    """The architecture of a network, compiled or as it is; the U-Net's where none is declared."""
    for kind in type(getattr(network, "_orig_mod", network)).__mro__:
        if kind.__name__ in ARCHITECTURES:
            return ARCHITECTURES[kind.__name__]
    return ARCHITECTURES["UNet2DConditionModel"]


def zeros_like_weights(network: nn.Module, *shape: int) -> torch.Tensor:
    """Zeros on the network's device, in the type of its weights."""
    return next(network.parameters()).new_zeros(shape)
