"""Denoisers of diffusers, whatever their architecture: how each is called, and what of it can be removed."""

from common.denoisers import transformers, unet  # noqa: F401  which declare what they know
