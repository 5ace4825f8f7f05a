"""Criteria before training against students after it: rank correlations over sets of layers that were trained alike."""

import argparse
import json

import pytest

from experiments import criteria_after_training
from experiments.criteria_after_training import rank, scores_of
from tests.experiments.test_collect import job

SITES = [f"layer{number}" for number in range(10)]


def write_sets(folder, count):
    """Set i removes layers i and i + 1; its student is the worse the larger i is, and was pruned the other way round."""
    for number in range(count):
        row = job(folder / str(number), "random_layers")
        row["settings"]["method"] |= {"seed": number, "granularity": "transformer", "width_changing": "shortcut"}
        row["settings"]["task"]["name"] = "uig"
        row["plan"] = [{"site": SITES[number]}, {"site": SITES[number + 1]}]
        row["models"]["distilled"]["feature_mse"] = 0.1 + number
        row["models"]["pruned"]["feature_mse"] = 10.0 - number
        (folder / str(number) / "result.json").write_text(json.dumps(row))


@pytest.fixture
def scored(monkeypatch):
    """Criteria that agree with what becomes of the students, but for magnitude, which says the opposite."""

    def scores(row, overrides):
        sign = -1 if "method=magnitude" in overrides else 1
        return {site: sign * number for number, site in enumerate(SITES)}

    monkeypatch.setattr(criteria_after_training, "scores_of", scores)


def arguments(folder, *words):
    return argparse.Namespace(words=[str(folder), *words], metric="feature_mse", out=folder / "out")


def test_criteria_are_ranked_against_what_became_of_the_students(tmp_path, scored, capsys):
    write_sets(tmp_path / "jobs", 9)
    rank(arguments(tmp_path / "jobs"))
    found = json.loads((tmp_path / "jobs" / "out" / "criteria_after_training.json").read_text())["criteria"]
    assert set(found) == {"measured before training", "output loss", "task loss", "block influence", "magnitude"}
    for name, (before, after) in {
        "output loss": (-1, 1),
        "magnitude": (1, -1),
        "measured before training": (1, -1),
    }.items():
        assert found[name]["pruned"]["spearman"] == pytest.approx(before)
        assert found[name]["distilled"]["spearman"] == pytest.approx(after)
    assert found["output loss"]["sums"][:2] == [1, 3]  # of the layers 0 and 1, 1 and 2
    assert (tmp_path / "jobs" / "out" / "criteria_after_training.png").is_file()
    text = capsys.readouterr().out
    assert "block influence" in text and "9 sets of layers" in text


def test_bad_input_is_told(tmp_path, scored, capsys):
    write_sets(tmp_path / "few", 3)
    write_sets(tmp_path / "unlike", 6)
    path = tmp_path / "unlike" / "0" / "result.json"
    row = json.loads(path.read_text())
    row["settings"]["method"]["ratio"] = 0.1
    path.write_text(json.dumps(row))
    for words, message in (
        ((tmp_path / "few",), "3 trained students with feature_mse; 6 are needed"),
        ((tmp_path / "unlike",), "differ in more than their seeds"),
        (("task=uig",), "Give the folder of the jobs"),
    ):
        with pytest.raises(SystemExit):
            rank(argparse.Namespace(words=list(map(str, words)), metric="feature_mse", out=tmp_path))
        assert message in capsys.readouterr().err


def test_scores_are_of_the_rows_teacher_and_layers(tiny_uig_teacher_folder, tmp_path):
    method = {"ratio": 0.2, "granularity": "transformer", "width_changing": "keep"}
    row = {"settings": {"task": {"name": "uig"}, "teacher": {"path": str(tiny_uig_teacher_folder)}, "method": method}}
    small = [f"outputs={tmp_path}", "calibration.data_rows=4"]
    influences = scores_of(row, ["method=block_influence", *small])
    magnitudes = scores_of(row, ["method=magnitude", *small])
    assert set(influences) == set(magnitudes) and all(0 < value < 2 for value in influences.values())
