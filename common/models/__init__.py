"""Latent diffusion models: found, checked, loaded and saved."""
