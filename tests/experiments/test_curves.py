"""Curves from rows: the points that are drawn, and rows that do not belong together."""

import json

import pytest
from PIL import Image

from common.errors import InputError
from experiments.curves import curves, draw_curves, sampling_points, training_points
from experiments.rows import read_rows
from tests.experiments.test_collect import job


def extend(folder, **more):
    row = json.loads((folder / "result.json").read_text()) | more
    (folder / "result.json").write_text(json.dumps(row))
    return row


def test_points_run_from_the_pruned_network_to_the_finished_student(tmp_path):
    row = job(tmp_path / "a")
    assert training_points(row) == [] and sampling_points(row, "teacher") == []
    row |= {"curve": [{"step": 10, "fd_effnet": 1900.0}]}
    assert training_points(row) == [(0, 2500.0), (10, 1900.0), (20, 1600.0)]
    row |= {"by_steps": {"50": {"teacher": {"fd_effnet": 1400.0}}, "10": {"teacher": {"fd_effnet": 1700.0}}}}
    assert sampling_points(row, "teacher") == [(10, 1700.0), (20, 1500.0), (50, 1400.0)]


def test_the_picture_has_a_panel_for_what_the_rows_hold(tmp_path):
    job(tmp_path / "a")
    job(tmp_path / "b", "magnitude", 0.33)
    draw_curves(read_rows([tmp_path]), tmp_path / "one.png")
    extend(tmp_path / "a", curve=[{"step": 10, "fd_effnet": 1900.0}])
    models = {who: {"fd_effnet": 1.0} for who in ("teacher", "pruned", "distilled")}
    extend(tmp_path / "b", by_steps={"10": models})
    draw_curves(read_rows([tmp_path]), tmp_path / "three.png")
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "three.png") as three:
        assert 2.7 < three.width / one.width < 3.3


def test_rows_of_two_protocols_are_refused(tmp_path):
    import argparse

    job(tmp_path / "a")
    job(tmp_path / "b", steps=50)
    with pytest.raises(SystemExit):
        curves(argparse.Namespace(folders=[tmp_path], out=tmp_path / "x.png"))
    with pytest.raises(InputError, match="2 kinds"):
        curves.__wrapped__(argparse.Namespace(folders=[tmp_path], out=tmp_path / "x.png"))
