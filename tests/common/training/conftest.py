"""Here the teacher is one of two levels."""

import pytest


@pytest.fixture(scope="session")
def tiny_teacher_folder(two_level_teacher_folder):
    return two_level_teacher_folder
