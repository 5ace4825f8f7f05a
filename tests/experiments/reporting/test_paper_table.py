"""A published table with ours beside it."""

import json
import math

from experiments.reporting.paper_table import markdown, note, paper_table, print_paper_table, told_apart
from experiments.reporting.rows import read_rows
from tests.experiments.test_collect import job

TABLE = {
    "title": "Table 7",
    "source": "a paper",
    "columns": ["FID"],
    "lines": [
        {"name": "teacher", "published": ["13.05"], "ours": {"model": "teacher"}},
        {"name": "half", "published": ["12.37"], "ours": {"method.ratio": 0.5}},
        {"name": "not run", "ours": {"method.ratio": 0.9}},
    ],
}


def test_ours_stands_beside_the_published(tmp_path, capsys):
    job(tmp_path / "a")
    rows = read_rows([tmp_path])
    titles, lines = paper_table(rows, TABLE)
    assert titles == ["", "FID", "|", "left", "time", "FD", "retrieval", "MSE to t."]
    assert lines[0] == ["teacher", "13.05", "|", "100%", "1.00x", "1500.0", "50.0%", "0.000"]
    assert lines[1][:6] == ["half", "12.37", "|", "50%", "1.00x", "1600.0"]
    assert lines[2] == ["not run", "", "|", "", "", "", "", ""]
    print_paper_table(rows, TABLE)
    printed = capsys.readouterr().out
    assert "Table 7" in printed and "12.37" in printed and "a paper" in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_a_table_without_published_numbers_has_no_bar(tmp_path):
    job(tmp_path / "a")
    table = {**TABLE, "columns": [], "lines": [{"name": "half", "ours": {}}]}
    titles, lines = paper_table(read_rows([tmp_path]), table)
    assert "|" not in titles and "published" not in note(table, read_rows([tmp_path]))
    text = markdown(titles, lines).splitlines()
    assert text[1].startswith("| --- | ---: |") and text[2].startswith("| half | 50% |")


def test_students_are_told_apart_by_the_interval_of_their_difference(tmp_path):
    """Paired: two whose replicates move together are told apart where each alone has a wide interval."""
    lines, moves = [], [math.sin(place) for place in range(20)]
    for name, value, own in (("far", 0.5, 0.0), ("near", 0.40, 0.0), ("as near", 0.41, 2.0)):
        job(tmp_path / name, ratio=value)
        row = json.loads((tmp_path / name / "result.json").read_text())
        replicates = [value + 0.01 * move + 0.01 * own * math.cos(3 * place) for place, move in enumerate(moves)]
        row["models"]["distilled"] |= {"feature_mse": value, "feature_mse_replicates": replicates}
        (tmp_path / name / "result.json").write_text(json.dumps(row))
        lines.append({"name": name, "ours": {"method.ratio": value}})
    titles, found = told_apart(read_rows([tmp_path]), {**TABLE, "columns": [], "lines": lines})
    assert titles[1] == "features to t." and [line[0] for line in found] == ["near", "as near", "far"]
    assert [line[2] for line in found] == ["far", "", ""]
    assert told_apart(read_rows([tmp_path]), TABLE)[1] == []


def test_the_published_metrics_take_the_place_of_ours(tmp_path):
    """Where FID, IS and CLIP score were measured they stand below the same titles, and the note says so."""
    job(tmp_path / "a")
    rows = read_rows([tmp_path])
    for figures, fid in ((rows[0]["models"]["teacher"], 13.05), (rows[0]["models"]["distilled"], 15.76)):
        figures |= {"fid": fid, "inception_score": 36.764, "clip_score": 0.29581}
    titles, lines = paper_table(rows, {**TABLE, "columns": ["FID", "IS", "CLIP"]})
    assert titles[4:] == ["|", "left", "time", "FID", "IS", "CLIP"]
    assert lines[0][-3:] == ["13.05", "36.76", "0.2958"] and lines[1][-3] == "15.76"
    assert "by the published metrics" in note(TABLE, rows)
    for figures in rows[0]["models"].values():
        figures.pop("fid", None), figures.pop("inception_score", None), figures.pop("clip_score", None)
        figures["fad_vggish"] = 2.3
    assert paper_table(rows, TABLE)[0][5] == "FAD"


def test_the_note_tells_captions_and_statistics_of_one_s_own(tmp_path):
    """An FID over other captions, or to other images, than the published one is no such figure."""
    job(tmp_path / "a")
    rows = read_rows([tmp_path])
    assert "But" not in note(TABLE, rows)  # nothing published was measured
    for figures in rows[0]["models"].values():
        figures["fid"] = 20.0
    own = "captions are task.data's (no evaluation.prompts)", "FID is to images of task.data (no metrics.fid.reference)"
    assert f"But {own[0]} and {own[1]}: compare the order, no number." in note(TABLE, rows)
    assert "But" not in note({**TABLE, "columns": ["PickScore"]}, rows)
    rows[0]["protocol"] |= {"prompts": "metadata.csv", "metrics": {"fid": {"reference": None}}}
    assert f"But {own[1]}:" in note(TABLE, rows)
    rows[0]["protocol"] |= {"prompts": None, "metrics": {"fid": {"reference": "real_im256.npz"}}}
    assert f"But {own[0]}:" in note(TABLE, rows)
    rows[0]["protocol"]["prompts"] = "metadata.csv"
    assert "But" not in note(TABLE, rows) and "by the published metrics" in note(TABLE, rows)
    rows[0]["protocol"]["prompts"], rows[0]["settings"]["task"] = None, {"name": "uig"}
    assert "But" not in note(TABLE, rows)  # no captions, and no published statistics
