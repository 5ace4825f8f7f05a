"""What imports torchvision can be imported in any order, once the project has been."""

import subprocess
import sys

import pytest

from tests.commands import ROOT


@pytest.mark.slow
def test_what_imports_torchvision_can_be_imported():
    pytest.importorskip("torchvision")
    script = "import common; from transformers import CLIPImageProcessor; import cleanfid.fid; import diffusers.image_processor"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0, found.stderr
    assert "torchao" not in found.stderr and "_pytree" not in found.stderr


def test_the_project_itself_imports_neither_torch_nor_torchvision():
    script = "import common, sys; print([name for name in ('torch', 'torchvision', 'numpy') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"


def test_operators_that_the_package_brings_are_not_declared_again(tmp_path, monkeypatch):
    import torch

    from common.runtime import torchvision_import

    loaded, library = [], tmp_path / "_C.so"
    library.write_bytes(b"")
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    monkeypatch.setattr(torchvision_import, "kept", [])
    torchvision_import.provide_operators(tmp_path)
    assert loaded == [str(library)] and torchvision_import.kept == []
