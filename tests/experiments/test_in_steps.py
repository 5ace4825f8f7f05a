"""Pruning at once against pruning in steps: each stage prunes the student before, and the last one meets the original."""

import argparse
import json

import pytest

from experiments.in_steps import compare

SETTINGS = ["task.data.limit=20", "calibration.num_conditions=4", "evaluation.batch_size=8", "evaluation.steps=2"]
SETTINGS += ["evaluation.latency_rounds=2", "logging=none", "distill=bk_sdm", "distill.batch_size=4", "device=cpu"]


def arguments(folder, *settings, removed=(0.3,), stages=2, steps=4):
    return argparse.Namespace(settings=list(settings), removed=list(removed), stages=stages, steps=steps, out=folder)


@pytest.mark.slow
def test_both_ways_end_at_one_size_and_are_measured_against_the_original(tiny_uig_teacher_folder, tmp_path, capfd):
    settings = ["task=uig", "method=magnitude", f"teacher.path={tiny_uig_teacher_folder}", "evaluation.images=8", *SETTINGS]
    compare(arguments(tmp_path / "out", *settings))
    out = capfd.readouterr().out
    assert "features to t.: at once" in out and "in steps minus at once" in out
    (document,) = (tmp_path / "out").glob("*/in_steps.json")
    ((at_once, in_steps),) = json.loads(document.read_text())["rows"]
    teachers = [row["models"]["teacher"] for row in (at_once, in_steps)]
    assert teachers[0]["parameters"] == teachers[1]["parameters"]
    students = [at_once["models"]["distilled"]["parameters"], in_steps["models"]["pruned"]["parameters"]]
    assert all(0.5 < student / teachers[0]["parameters"] < 0.71 for student in students)
    stages = [json.loads((document.parent / "0.3_in_steps" / f"stage_{n}" / "result.json").read_text()) for n in (1, 2)]
    assert stages[1]["models"]["teacher"]["parameters"] == stages[0]["models"]["distilled"]["parameters"]
    assert [stage["settings"]["distill"]["steps"] for stage in stages] == [2, 2]
    assert {edit["site"] for stage in stages for edit in stage["plan"]} == {edit["site"] for edit in in_steps["plan"]}
    assert (document.parent / "feature_mse.png").is_file()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"stages": 1}, "--stages must be 2 or more"),
        ({"steps": 1}, "--steps at least as many"),
        ({"removed": (0.3, 1.2)}, "--removed takes shares between 0 and 1"),
    ],
)
def test_bad_input_is_one_line_before_any_job(tmp_path, capsys, changed, told):
    with pytest.raises(SystemExit) as ended:
        compare(arguments(tmp_path, "task=uig", **changed))
    error = capsys.readouterr().err
    assert ended.value.code == 2 and told in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_settings_of_its_own_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        compare(arguments(tmp_path, "task=uig", "method.ratio=0.5"))
    assert "method.ratio=0.5 is not for this command" in capsys.readouterr().err
