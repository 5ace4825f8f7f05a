"""Modules of diffusers by the names of their classes.

To import the classes takes seconds, and what is wrong with a setting of a method is told before that.
"""

from torch import nn

RESNET, ATTENTION = "ResnetBlock2D", "Attention"
TRANSFORMER, TRANSFORMER_BLOCK, FEED_FORWARD = "Transformer2DModel", "BasicTransformerBlock", "FeedForward"
SAMPLERS = ("Downsample2D", "Upsample2D")
ZERO = "Zero"  # of common.pruning.pruned_denoiser


def is_kind(module: nn.Module, *names: str) -> bool:
    """Whether a module is an instance of one of the classes called so."""
    return any(kind.__name__ in names for kind in type(module).__mro__)
