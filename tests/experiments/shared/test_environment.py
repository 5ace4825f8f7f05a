"""Where a result comes from is part of its row."""

import subprocess

import torch

from common.runtime.files import ROOT
from experiments.shared import environment


def test_environment_names_versions_revision_and_hardware(monkeypatch, tmp_path):
    found = environment.environment(torch.device("cpu"))
    assert found["packages"]["torch"] == torch.__version__.split("+")[0] or found["packages"]["torch"] == torch.__version__
    assert found["cores"] >= 1 and found["memory_mib"] > 100 and found["device"].startswith("cpu: ")
    if (ROOT / ".git").exists():
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
        assert found["revision"]["commit"] == commit and isinstance(found["revision"]["dirty"], bool)
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    assert "commit" not in environment.revision()
