"""CMMD and the Fréchet distance over DINOv2, over small random networks, against their definitions."""

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import InputError
from common.metrics.embedding_distances import ClipKernelDistance, DinoFrechetDistance

CPU = torch.device("cpu")
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("networks")
    CLIPVisionModelWithProjection(CLIPVisionConfig(**SMALL, image_size=24, projection_dim=12)).save_pretrained(place / "clip")
    Dinov2Model(Dinov2Config(**SMALL, image_size=24)).save_pretrained(place / "dino")
    return place


def images(count, seed, brightness=1.0):
    """Not square, and of another size than the networks see."""
    small = torch.rand(count, 3, 4, 5, generator=torch.Generator().manual_seed(seed)) * brightness
    return (255 * torch.nn.functional.interpolate(small, (32, 40), mode="bilinear")).to(torch.uint8)


def loaded(kind, folder):
    metric = kind("distance", str(folder), None, 24, 4)
    metric.load(CPU)
    return metric


def seen_by_transformers(processor, pictures):
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pictures]
    return processor(pictures, size={"height": 24, "width": 24}, do_center_crop=False, return_tensors="pt").pixel_values


def test_cmmd_is_its_definition(folders):
    from transformers import CLIPImageProcessorPil

    metric, real, fake = loaded(ClipKernelDistance, folders / "clip"), images(7, 0), images(5, 1, 0.6)
    x, y = metric.rows(real, None), metric.rows(fake, None)
    assert x.shape == (7, 12)
    assert torch.allclose(metric.pixels(real), seen_by_transformers(CLIPImageProcessorPil(), real), atol=1e-5)
    a, b = (rows.numpy().astype(np.float64) / np.linalg.norm(rows.numpy(), axis=1, keepdims=True) for rows in (x, y))

    def kernel(p, q):
        return np.exp(-((p[:, None] - q[None]) ** 2).sum(-1) / (2 * 10**2))

    def without_diagonal(k):
        return (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))

    expected = 1000 * (without_diagonal(kernel(a, a)) + without_diagonal(kernel(b, b)) - 2 * kernel(a, b).mean())
    found = metric.figures(y, x, 0)(torch.arange(5))
    assert found == {"distance": pytest.approx(expected, rel=1e-4)} and expected > 0


def test_the_distance_over_dinov2_is_of_its_class_token(folders):
    from scipy.linalg import sqrtm
    from transformers import BitImageProcessorPil, Dinov2Model

    metric, real, fake = loaded(DinoFrechetDistance, folders / "dino"), images(40, 0), images(30, 1, 0.6)
    network = Dinov2Model.from_pretrained(folders / "dino").eval()
    pixels = seen_by_transformers(
        BitImageProcessorPil(image_mean=metric.mean, image_std=metric.deviation, resample=Image.Resampling.BICUBIC), real
    )
    assert torch.allclose(metric.pixels(real), pixels, atol=1e-5)
    with torch.no_grad():
        token = network(pixel_values=pixels).last_hidden_state[:, 0]
    x, y = metric.rows(real, None), metric.rows(fake, None)
    assert torch.allclose(x, token, atol=1e-5)
    m, n = x.double().numpy(), y.double().numpy()
    c, d = np.cov(m.T), np.cov(n.T)
    expected = ((m.mean(0) - n.mean(0)) ** 2).sum() + np.trace(c + d - 2 * sqrtm(c @ d).real)
    assert metric.figures(y, x, 0)(torch.arange(30))["distance"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("kind", "name"), [(ClipKernelDistance, "clip"), (DinoFrechetDistance, "dino")])
def test_bad_input(folders, kind, name, tmp_path):
    metric = loaded(kind, folders / name)
    with pytest.raises(InputError, match="distance is of images in colour"):
        metric.rows(images(2, 0)[:, :1], None)
    with pytest.raises(InputError, match=r"^distance\.size=30: .*(sees 24 pixels|multiple of the 8 pixels)"):
        kind("distance", str(folders / name), None, 30, 4).load(CPU)
    with pytest.raises(InputError, match="is missing: give a folder"):
        kind("distance", str(tmp_path / "none"), None, 24, 4).load(CPU)
    other = folders / ("dino" if name == "clip" else "clip")
    with pytest.raises(InputError, match="lacks weights of|has no"):
        kind("distance", str(other), None, 24, 4).load(CPU)
