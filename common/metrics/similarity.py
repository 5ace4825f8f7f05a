"""How close the samples of a student are to the teacher's from equal seeds."""

import torch


def latent_mse(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean squared difference over all elements of two equally shaped sets of latents."""
    return torch.nn.functional.mse_loss(a.double(), b.double()).item()


def structural_similarity(images_a: torch.Tensor, images_b: torch.Tensor) -> float:
    """Mean SSIM (Wang et al. 2004), by torchmetrics, of uint8 images (count, 3, height, width); 1 for equal images."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    return structural_similarity_index_measure(images_a.float(), images_b.float(), data_range=255.0).item()
