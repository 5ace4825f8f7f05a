"""Figures among rows by what is asked for."""

import pytest

from common.errors import InputError
from experiments.reporting.lookup import find, matching
from experiments.reporting.rows import labels, read_rows
from tests.experiments.reporting.test_curves import extend
from tests.experiments.test_collect import job


def test_settings_and_choices_select_rows(tmp_path):
    job(tmp_path / "a", "laptop_diff", 0.5)
    job(tmp_path / "b", "magnitude", 0.5)
    job(tmp_path / "c", "magnitude", 1)
    rows = read_rows([tmp_path])
    assert len(matching(rows, {"method": "magnitude"})) == 2
    assert len(matching(rows, {"method": "magnitude", "method.ratio": 0.5, "init": "preserved"})) == 1
    assert len(matching(rows, {"method.ratio": 1.0})) == 1  # a number by its value
    assert matching(rows, {"method.nothing": 1}) == []
    assert find(rows, {"method": "dense"}) is None
    with pytest.raises(InputError, match="means 2 rows"):
        find(rows, {"method": "magnitude"})
    assert find(rows, {"model": "teacher"})["distance"] == 1500.0


def test_the_moment_the_model_and_what_follows_from_them(tmp_path):
    job(tmp_path / "a")
    extend(
        tmp_path / "a",
        curve=[{"step": 5, "fd_effnet": 1900.0}],
        by_steps={"50": {"distilled": {"fd_effnet": 1400.0}}},
        plan=[{"site": "up_blocks.0"}, {"site": "down_blocks.0"}, {"site": "up_blocks.1"}, {"site": "mid_block"}],
    )
    rows = read_rows([tmp_path])
    assert find(rows, {})["distance"] == 1600.0 and find(rows, {"model": "pruned"})["distance"] == 2500.0
    found = [find(rows, {"at": share}) for share in (0, 0.27, 0.97, 0.5)]
    assert [(f["distance"], f["after"]) for f in found] == [(2500.0, 0.0), (1900.0, 0.25), (1600.0, 1.0), (None, None)]
    assert found[1]["caption_retrieval"] is None  # only the distance is measured on the way
    assert found[1]["left"] == 0.5  # the size does not change on the way
    assert find(rows, {"steps": 50})["distance"] == 1400.0
    assert find(rows, {"steps": 10})["distance"] is None
    assert find(rows, {})["upward"] == 0.5 and find(rows, {})["time"] == 1.0


def test_labels_tell_jobs_apart_by_recipe_and_init(tmp_path):
    for name, change in {"a": {}, "b": {"init": "scratch"}, "c": {"seed": 1}}.items():
        row = job(tmp_path / name)
        extend(tmp_path / name, settings={**row["settings"], **change})
    found = labels(read_rows([tmp_path]))
    assert len(set(found)) == 3 and found[1] == "LAPTOP-Diff 0.5 scratch"
