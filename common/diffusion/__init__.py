"""Noise, latents, text and sampling, as diffusers' pipelines have them."""
