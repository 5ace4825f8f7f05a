"""Rows of many jobs in one table: broken ones are named and left out, nothing else is lost."""

import csv
import json

import pytest

from common.errors import InputError
from experiments.reporting.job_table import print_rows
from experiments.reporting.rows import changed_settings, labels, read_rows, setting
from experiments.reporting.tables import flatten, write_csv, write_parquet


def job(folder, method="laptop_diff", ratio=0.5, criterion="output", steps=20):
    figures = {"parameters": 100, "fd_effnet": 1500.0, "caption_retrieval": 0.5, "latent_mse": 0.0, "latency": {"ratio": 1.0}}
    row = {
        "settings": {
            "method": {"ratio": ratio, "criterion": criterion},
            "task": {"name": "t2i"},
            "teacher": {"path": "emoji_t2i"},
            "distill": {"steps": 20},
            "init": "preserved",
            "seed": 0,
        },
        "choices": {"method": method, "distill": "bk_sdm"},
        "command": f"python run.py method={method}",
        "models": {
            "real": {"fd_effnet": 900.0},
            "teacher": figures,
            "pruned": {**figures, "parameters": 50, "fd_effnet": 2500.0},
            "distilled": {**figures, "parameters": 50, "fd_effnet": 1600.0},
        },
        "plan": [{"site": "a"}],
        "protocol": {"images": 64, "steps": steps},
    }
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(row))
    return row


def test_rows_of_a_folder_and_a_broken_one(tmp_path, capsys):
    job(tmp_path / "a")
    job(tmp_path / "b", "magnitude", 0.33)
    for name, text in {"c": "{", "d": "{}", "e": "[]"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(text)
    rows = read_rows([tmp_path])
    assert [setting(row) for row in rows] == ["0.5", "0.33"]
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 3 and all(str(tmp_path / name) in line for name, line in zip("cde", told, strict=True))
    print_rows(rows)
    out = capsys.readouterr().out
    assert "2500→1600" in out and all(len(line) <= 80 for line in out.splitlines())
    assert out.index("magnitude") < out.index("LAPTOP-Diff")  # by setting, then by method


def test_rows_of_other_protocols_and_settings_are_told_apart(tmp_path, capsys):
    job(tmp_path / "a")
    job(tmp_path / "b", criterion="task")
    job(tmp_path / "c", steps=50)
    print_rows(read_rows([tmp_path]))
    out = capsys.readouterr().out
    assert "2 jobs; t2i" in out and "1 jobs; t2i" in out
    assert "0.5 output" in out and "0.5 task" in out


def test_csv_holds_every_model_of_every_job(tmp_path):
    job(tmp_path / "a")
    write_csv([record for row in read_rows([tmp_path]) for record in flatten(row)], tmp_path / "rows.csv")
    with open(tmp_path / "rows.csv") as handle:
        records = list(csv.DictReader(handle))
    assert [record["model"] for record in records] == ["real", "teacher", "pruned", "distilled"]
    assert records[3]["fd_effnet"] == "1600.0" and records[3]["latency_ratio"] == "1.0"
    assert records[0]["command"] == "python run.py method=laptop_diff" and records[0]["setting"] == "0.5"


def test_parquet_holds_settings_of_every_type(tmp_path):
    from pyarrow import parquet

    job(tmp_path / "a")
    job(tmp_path / "b", "bk_sdm", ratio="half")
    write_parquet([record for row in read_rows([tmp_path]) for record in flatten(row)], tmp_path / "rows.parquet")
    table = parquet.read_table(tmp_path / "rows.parquet")
    assert table.num_rows == 8 and table["settings_method_ratio"].to_pylist()[::4] == ["0.5", "half"]
    assert table["fd_effnet"].to_pylist()[3] == 1600.0 and table["plan"].to_pylist()[0] == '[{"site": "a"}]'
    assert table["protocol_images"].to_pylist()[0] == 64


def test_no_rows_are_told(tmp_path):
    with pytest.raises(InputError, match="No result.json or rows.jsonl below"):
        read_rows([tmp_path])
    with pytest.raises(InputError, match="nowhere is no folder"):
        read_rows([tmp_path / "nowhere"])


def test_knobs_side_by_side_and_settings_of_a_variant(tmp_path, capsys):
    sparse = {"variant": "published", "sparsity": 0.5, "threshold": None, "beta": 1.0, "parts": ["denoiser"]}
    for name, change in {
        "a": {},
        "b": {"sparsity": 0.7},
        "c": {"beta": 0.0},
        "d": {"parts": ["denoiser", "autoencoder"]},
        "e": {"variant": "reference", "beta": 0.5},
    }.items():
        row = job(tmp_path / name, "l1_diff")
        row["settings"]["method"] = sparse | change
        row["models"]["distilled"] |= {"nonzero_parameters": 30, "sparse_file": {"denoiser_bytes": 80}}
        row["models"]["teacher"] |= {"checkpoint_bytes_fp16": 200}
        (tmp_path / name / "result.json").write_text(json.dumps(row))
    rows = read_rows([tmp_path])
    assert [setting(row) for row in rows[:2]] == ["published 0.5", "published 0.7"]
    found = changed_settings(rows)
    assert found[0] == "published 0.5 beta=1 denoiser" and found[1] == "published 0.7 beta=1 denoiser"
    assert found[2] == "published 0.5 beta=0 denoiser" and found[3].endswith("denoiser+autoencoder")
    assert found[4] == "reference 0.5"  # no other of its variant
    print_rows(rows)
    out = capsys.readouterr().out
    assert "30%" in out and "40%" in out and all(len(line) <= 80 for line in out.splitlines())


def test_labels_tell_of_any_setting_that_differs(tmp_path):
    for name, rate in (("a", 3e-4), ("b", 1e-3)):
        row = job(tmp_path / name)
        row["settings"]["distill"]["optimizer"] = {"lr": rate, "weight_decay": 0.0}
        (tmp_path / name / "result.json").write_text(json.dumps(row))
    rows = read_rows([tmp_path])
    assert labels(rows) == ["LAPTOP-Diff 0.5 lr=0.0003", "LAPTOP-Diff 0.5 lr=0.001"]
    assert labels([rows[0], rows[0]]) == ["LAPTOP-Diff 0.5 #1", "LAPTOP-Diff 0.5 #2"]
