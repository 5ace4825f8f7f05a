"""A calibration with training rows and an alignment, which LAPTOP-Diff's criteria look at."""

from dataclasses import replace

import pytest
import torch


@pytest.fixture
def data_calibration(tiny_teacher, tiny_calibration):
    generator = torch.Generator().manual_seed(3)
    captions = [f"thing {index}, noto style" for index in range(6)]
    rows = torch.randn(6, 4, 8, 8, generator=generator), tiny_teacher.encode_captions(captions)
    return replace(tiny_calibration, data=lambda: rows, alignment=lambda latents, chosen: latents.mean().item())
