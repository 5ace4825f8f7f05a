"""A fixture for the conftest.py of tests that need all layers of Stable Diffusion's U-Net."""

import pytest


@pytest.fixture(scope="session")
def tiny_teacher_folder(four_level_teacher_folder):
    return four_level_teacher_folder
