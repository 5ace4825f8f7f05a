"""Pipelines that several tests of models take."""

import pytest

from tests.language_model_pipelines import FAMILIES, Family, written


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    return Family(request.param, written(request.param, tmp_path_factory.mktemp(request.param) / "teacher"))
