"""The dashboard's specification, without a server."""

import argparse
import json

import pytest

from common.errors import InputError
from experiments.dashboard import comparison, dashboard, workspace


def test_the_workspace_compares_quality_over_every_knob():
    spec = json.loads(workspace("me", "bonsai")._to_model().model_dump_json(by_alias=True))
    text = json.dumps(spec)
    for knob in ("k", "ratio", "sparsity"):
        assert f"config:method.value.{knob}" in text
    for metric in ("fid", "pickscore", "fd_effnet"):
        assert f"summary:student/{metric}" in text
    assert "trainer/global_step" in text and "loss/feature" in text and "sampling/steps" in text
    assert (spec["entity"], spec["project"]) == ("me", "bonsai")


def test_the_report_groups_the_runs_by_method(monkeypatch):
    from wandb_workspaces.reports.v2 import interface

    monkeypatch.setattr(interface, "_get_api", lambda: None)  # the server is asked for the number of the project
    monkeypatch.setattr(interface, "execute_graphql", lambda *_: {"project": {"internalId": "1"}})
    text = comparison("me", "bonsai")._to_model().model_dump_json(by_alias=True)
    assert "summary:student/pickscore" in text and "jobType" in text


def test_without_a_login_one_line_says_so(monkeypatch, tmp_path):
    import wandb

    monkeypatch.setattr(wandb, "login", lambda **_: False)
    with pytest.raises(InputError, match="wandb login"):
        dashboard.__wrapped__(argparse.Namespace(entity="me", project="bonsai"))
