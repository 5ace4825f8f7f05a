"""Curves from rows: the points, and the panels that are drawn."""

import json
from itertools import combinations

from PIL import Image

from experiments.reporting.curves import cost, draw_curves, plot_data, sampling_points, series_of, training_points
from experiments.reporting.figures import Label, plotting, write_labels
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


def test_a_series_is_what_differs_in_its_knob_and_seed_alone(tmp_path):
    for ratio in (0.5, 0.33):
        for criterion in ("output", "magnitude"):
            for seed in (0, 1):
                folder = tmp_path / f"{ratio}{criterion}{seed}"
                row = job(folder, ratio=ratio, criterion=criterion)
                row["settings"]["seed"] = seed
                row["models"]["distilled"]["fd_effnet"] = 1600.0 + 100 * seed + 1000 * ratio
                extend(folder, settings=row["settings"], models=row["models"])
    job(tmp_path / "other", "bk_sdm", ratio=None, criterion=None)
    rows = read_rows([tmp_path])
    series = series_of(rows)
    assert set(series) == {"LAPTOP-Diff output", "LAPTOP-Diff magnitude", "BK-SDM"}
    assert [(point.knob, len(point.rows)) for point in series["LAPTOP-Diff output"]] == [(0.33, 2), (0.5, 2)]
    assert [point.knob for point in series["BK-SDM"]] == [None]
    assert series["LAPTOP-Diff output"][1].metric("fd_effnet") == (2150.0, 0.0)
    assert series["LAPTOP-Diff output"][1].metric("fid") is None
    told = {(each["series"], each["knob"]) for each in plot_data(rows)["jobs"]}
    assert ("LAPTOP-Diff magnitude", 0.33) in told and ("BK-SDM", None) in told


def test_labels_lie_on_no_other_and_inside():
    figure, axis = plotting().subplots()
    axis.plot([0, 1], [0, 1], ".")
    figure.tight_layout()
    write_labels(
        axis, [Label("0.5", 0.5, 0.5, "C0") for _ in range(9)] + [Label("0.75", 1.0, 1.0, "C1"), Label("far", 9, 9, "C2")]
    )
    boxes = [text.get_window_extent() for text in axis.texts]
    assert [text.get_text() for text in axis.texts] == ["0.5"] * 4 + ["0.75"]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert all(axis.get_window_extent().containsx(box.x0) and axis.get_window_extent().containsx(box.x1) for box in boxes)
