"""A published table with ours beside it."""

from experiments.paper_table import markdown, note, paper_table, print_paper_table
from experiments.rows import read_rows
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
