"""What a job or a sweep has left and is damaged is named in one line, with what to do."""

import json
import math

import pytest

from common.errors import InputError
from common.models.saving import save_student
from common.pruning.plan import Edit, Plan, apply_plan
from common.runtime.files import write_json
from experiments.job.pipeline import kept_student
from experiments.job.result_row import add_training
from experiments.reporting.rows import read_row, read_rows
from experiments.shared.tensor_cache import load_tensors
from experiments.sweeps.sweep import read_records, read_sweep
from experiments.training.distance_curve import read_curve


def test_a_student_that_is_half_there_is_named(tiny_teacher, tmp_path):
    student = tiny_teacher.with_parts(denoiser=apply_plan(tiny_teacher.denoiser, Plan("test", (Edit("mid_block", "zero"),))))
    folder = tmp_path / "student"
    remedy = r"student is damaged \(.+\); delete it and the student is trained anew\.$"

    def damaged():
        with pytest.raises(InputError, match=remedy) as told:
            kept_student(tiny_teacher, folder)
        assert "\n" not in str(told.value)
        save_student(tiny_teacher, student, folder)

    save_student(tiny_teacher, student, folder)
    kept_student(tiny_teacher, folder)
    (weights,) = (folder / "unet").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    damaged()
    weights.unlink()
    damaged()
    (folder / "unet" / "config.json").write_text("{")
    damaged()
    for text in ("{}", "{", "[]"):
        (folder / "model_index.json").write_text(text)
        damaged()


@pytest.mark.parametrize("content", [b"", b"\x10\0\0\0\0\0\0\0{", b"x" * 100])
def test_samples_and_features_that_are_damaged_are_named(tmp_path, content):
    path = tmp_path / "000000.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"000000\.safetensors is damaged \(.+\); delete it and it is computed anew\.$"):
        load_tensors(path)


OF_ANOTHER_SHAPE = '{"settings": {}, "models": 1, "plan": [], "protocol": {}}'


@pytest.mark.parametrize("text", ["", '{"settings": {', "{}", "[1]", "null", OF_ANOTHER_SHAPE])
def test_a_row_that_is_damaged_is_named_by_what_needs_it_and_left_out_by_what_has_others(tmp_path, text, capsys):
    path = tmp_path / "a" / "result.json"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(InputError, match=r"result\.json is damaged \(.+\); delete it and the job ends anew\.$"):
        read_row(path, "delete it and the job ends anew")
    with pytest.raises(InputError, match="run a job first"):
        read_rows([tmp_path])
    assert capsys.readouterr().err.startswith(f"left out: {path} is no whole row: ")


@pytest.mark.parametrize("text", ["", "{", "[]", "\0"])
def test_records_curves_and_reports_that_are_damaged_are_named(tmp_path, text):
    (tmp_path / "jobs").mkdir()
    for name, read in {
        "sweep.json": lambda: read_sweep(tmp_path),
        "jobs/000000.json": lambda: read_records(tmp_path),
        "step=00000004.json": lambda: read_curve(tmp_path),
        "report.json": lambda: add_training({}, tmp_path),
    }.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=rf"{name} is damaged \(.+\); delete .+\.$"):
            read()


def test_numbers_that_json_lacks_are_read_by_all(tmp_path, capsys):
    from experiments.reporting.job_table import print_rows
    from experiments.reporting.tables import flatten, write_csv, write_parquet
    from tests.experiments.test_collect import job

    row = job(tmp_path / "a")
    row["models"]["distilled"] |= {"fd_effnet": math.nan, "latent_mse": math.inf}
    write_json(tmp_path / "a" / "result.json", row)
    text = (tmp_path / "a" / "result.json").read_text()
    assert json.loads(text)["models"]["distilled"]["fd_effnet"] == "NaN" and '"Infinity"' in text
    assert math.isnan(read_row(tmp_path / "a" / "result.json", "")["models"]["distilled"]["fd_effnet"])
    rows = read_rows([tmp_path])
    print_rows(rows)
    assert "nan" in capsys.readouterr().out
    records = flatten(rows[0])
    write_csv(records, tmp_path / "rows.csv")
    write_parquet(records, tmp_path / "rows.parquet")
    assert ",nan" in (tmp_path / "rows.csv").read_text()
