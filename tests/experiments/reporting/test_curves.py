"""Curves from rows: the points, and the panels that are drawn."""

import json

from PIL import Image

from experiments.reporting.curves import cost, draw_curves, plot_data, sampling_points, training_points
from experiments.reporting.rows import read_rows
from tests.experiments.test_collect import job


def extend(folder, **more):
    row = json.loads((folder / "result.json").read_text()) | more
    (folder / "result.json").write_text(json.dumps(row))
    return row


def test_points_run_from_the_pruned_network_to_the_finished_student(tmp_path):
    row = job(tmp_path / "a")
    assert training_points(row, "fd_effnet") == [] and sampling_points(row, "teacher", "fd_effnet") == []
    row |= {"curve": [{"step": 10, "fd_effnet": 1900.0}]}
    assert training_points(row, "fd_effnet") == [(0, 2500.0), (10, 1900.0), (20, 1600.0)]
    assert training_points(row, "caption_retrieval") == []
    row |= {"by_steps": {"50": {"teacher": {"fd_effnet": 1400.0}}, "10": {"teacher": {"fd_effnet": 1700.0}}}}
    assert sampling_points(row, "teacher", "fd_effnet") == [(10, 1700.0), (20, 1500.0), (50, 1400.0)]


def test_costs_of_a_row(tmp_path):
    row = job(tmp_path / "a")
    found = {name: cost(row, "distilled", name) for name in ("parameters", "latency", "macs", "ratio", "k")}
    assert found == {"parameters": 50e-6, "latency": 1.0, "macs": None, "ratio": 0.5, "k": None}


def test_the_picture_has_a_panel_for_what_the_rows_hold(tmp_path):
    job(tmp_path / "a")
    job(tmp_path / "b", "magnitude", 0.33)
    draw_curves(read_rows([tmp_path]), tmp_path / "costs.png")  # parameters, time, ratio
    extend(tmp_path / "a", curve=[{"step": 10, "fd_effnet": 1900.0}])
    models = {who: {"fd_effnet": 1.0} for who in ("teacher", "pruned", "distilled")}
    extend(tmp_path / "b", by_steps={"10": models})
    draw_curves(read_rows([tmp_path]), tmp_path / "all.png")
    with Image.open(tmp_path / "costs.png") as costs, Image.open(tmp_path / "all.png") as whole:
        assert costs.width == whole.width and whole.height == 2 * costs.height


def test_what_is_no_number_or_missing_does_not_break_the_page(tmp_path):
    row = job(tmp_path / "a")
    row["models"]["distilled"]["fd_effnet"] = float("nan")
    extend(tmp_path / "a", models=row["models"])
    row = job(tmp_path / "b", ratio=0.7)
    for figures in row["models"].values():
        figures["ssim"] = 0.5
    extend(tmp_path / "b", models=row["models"])
    rows = read_rows([tmp_path])
    data = plot_data(rows)
    json.dumps(data, allow_nan=False)
    assert data["jobs"][0]["metrics"]["fd_effnet"] is None and data["teacher"]["ssim"] == 0.5
    draw_curves(rows, tmp_path / "ssim.png", "ssim")
    assert (tmp_path / "ssim.png").is_file()
