"""LD-Pruner (arXiv 2404.11936): operators removed by how little their removal moves the latents."""

from ld_pruner.algorithm import latent_score
from ld_pruner.operators import list_operators

__all__ = ["latent_score", "list_operators"]
