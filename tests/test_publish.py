"""Sweeps, published: pages, rows that can be read again, samples; what is broken or gone is told and stops nothing."""

import argparse
import json
import os
import shutil

import pytest
import torch
from PIL import Image

from common.runtime.files import ROOT, write_json
from experiments.publish import publish
from experiments.reporting import job_report, sample_sheet
from experiments.reporting.rows import flat, page_place, read_rows
from experiments.shared import job as jobs
from experiments.shared.prompts import Prompts
from experiments.sweeps.objectives import is_figure
from tests.commands import run
from tests.experiments.test_collect import job
from tests.small_jobs import job as small_job

pytestmark = pytest.mark.slow

TABLE = {
    "title": "Table 7",
    "source": "a paper",
    "columns": ["FID"],
    "lines": [{"name": "half", "published": ["12.37"], "ours": {"method.ratio": 0.5}}],
}


def recorded(outputs, name, folders, table=None, jobs=None, experiment="x/main", words="outputs=/there"):
    """The record of a sweep over jobs in `folders`, those that end in "!" having failed."""
    sweep = {"command": f"python run.py -m experiment={experiment} {words}", "experiment": experiment, "task": "t2i"}
    write_json(outputs / "sweeps" / name / "sweep.json", {**sweep, "table": table, "jobs": jobs})
    for number, folder in enumerate(folders):
        error = "bad luck" if folder.endswith("!") else None
        record = {"run": "a", "folder": folder.rstrip("!"), "command": "python run.py", "error": error}
        write_json(outputs / "sweeps" / name / "jobs" / f"{number:06d}.json", record)


def published(outputs, code=None):
    """Where the pages are; `code`: how the command ends, other than well."""
    arguments = argparse.Namespace(outputs=outputs, out=outputs.parent / "pages")
    if code is None:
        publish(arguments)
    else:
        with pytest.raises(SystemExit) as ended:
            publish(arguments)
        assert ended.value.code == code
    return arguments.out


@pytest.fixture
def outputs(tmp_path):
    """Two jobs of one task, one of another."""
    for folder, ratio in (("t2i/m/a", 0.5), ("t2i/m/b", 0.25), ("uig/m/c", 0.5)):
        job(tmp_path / "outputs" / folder, ratio=ratio)
    path = tmp_path / "outputs" / "uig/m/c/result.json"
    row = json.loads(path.read_text())
    row["choices"]["task"] = "uig"
    write_json(path, row)
    return tmp_path / "outputs"


@pytest.mark.exhaustive
def test_each_task_has_its_pages(outputs, capsys):
    recorded(outputs, "both", ["t2i/m/a", "t2i/m/b", "t2i/m/d!", "uig/m/c"], TABLE)
    pages = published(outputs)
    text = (pages / "t2i/x/main/README.md").read_text()
    assert "# x/main, t2i" in text and "2 of 3 jobs" in text and "| half | 12.37 |" in text and "outputs=" not in text
    assert "![FD (EfficientNet)](fd_effnet.png)" in text and (pages / "t2i/x/main/fd_effnet.png").is_file()
    assert " jobs:" not in (pages / "uig/x/main/README.md").read_text()
    assert len(read_rows([pages / "t2i"])) == 2 and len(read_rows([pages / "uig"])) == 1
    index = (pages / "README.md").read_text()
    assert "## t2i\n\n- [x/main](t2i/x/main/README.md): Table 7" in index and "## uig" in index and "claims.md" not in index
    (pages / "t2i" / "claims.md").touch()
    (pages / "faults.md").touch()
    again = (published(outputs) / "README.md").read_text()
    assert "[claims.md](t2i/claims.md)" in again and "[faults.md](faults.md)" in again and "faults.md" not in index


def test_another_teacher_has_pages_of_its_own(outputs):
    """And its rows do not tell what seeds do to the task's own."""
    for folder, teacher in (("t2i/m/a", "small_t2i"), ("t2i/m/b", "small_dit")):
        path = outputs / folder / "result.json"
        row = json.loads(path.read_text())
        write_json(path, row | {"choices": row["choices"] | {"task": "t2i", "teacher": teacher}})
    recorded(outputs, "one", ["t2i/m/a"])
    recorded(outputs, "other", ["t2i/m/b"])
    pages = published(outputs)
    assert [page_place(row) for row in read_rows([pages / "t2i" / "x"])] == ["t2i"]
    assert [page_place(row) for row in read_rows([pages / "t2i" / "small_dit"])] == ["t2i/small_dit"]
    assert "# x/main, t2i/small_dit" in (pages / "t2i/small_dit/x/main/README.md").read_text()
    index = (pages / "README.md").read_text()
    assert "[x/main](t2i/x/main/README.md)" in index and "[small_dit/x/main](t2i/small_dit/x/main/README.md)" in index


@pytest.mark.exhaustive
def test_the_sweep_with_most_jobs_is_shown_and_the_later_one_among_equals(outputs):
    recorded(outputs, "whole", ["t2i/m/a", "t2i/m/b"])
    recorded(outputs, "test", ["t2i/m/a"])
    os.utime(outputs / "sweeps/whole/sweep.json", (1, 1))
    pages = published(outputs)
    assert len(read_rows([pages])) == 2
    recorded(outputs, "later", ["t2i/m/a", "uig/m/c"], experiment="x/main")
    job(outputs / "t2i/m/new", ratio=0.75)
    recorded(outputs, "newest", ["t2i/m/a", "t2i/m/new"])
    os.utime(outputs / "t2i/m/new/result.json", (9e9, 9e9))
    ratios = {row["settings"]["method"]["ratio"] for row in read_rows([published(outputs) / "t2i"])}
    assert ratios == {0.5, 0.75}


def test_seeds_of_sweeps_of_their_own_are_shown_together(outputs):
    """What asks for the same, or for some of it, of other seeds; not what differs in a setting."""
    for folder, ratio in (("t2i/m/e", 0.4), ("t2i/m/f", 0.3), ("t2i/m/g", 0.45), ("t2i/m/h", 0.35)):
        job(outputs / folder, ratio=ratio)
    commands = {
        "first": ("method.ratio=0.5,0.25 'method.kinds=[a,b]'", ["t2i/m/a", "t2i/m/b"]),
        "again": ("method.ratio=0.5 'method.kinds=[a,b]' seed=1,2,3", ["t2i/m/e", "t2i/m/g", "t2i/m/h"]),  # has more jobs
        "other": ("method.ratio=0.5 'method.kinds=[a]' seed=2", ["t2i/m/f"]),
    }
    for name, (words, folders) in commands.items():
        recorded(outputs, name, folders, words=words)
    page = published(outputs) / "t2i/x/main"
    assert len(read_rows([page])) == 5
    told = [line.strip() for line in (page / "README.md").read_text().splitlines() if line.startswith("    python")]
    assert told == [f"python run.py -m experiment=x/main {commands[name][0]}" for name in ("first", "again")]
    assert all(f"`{command}`" in (page.parents[2] / "README.md").read_text() for command in told)


def test_a_seed_that_was_run_again_is_one_job(outputs):
    """Also where two sweeps have jobs in common; a word without a value makes another sweep."""
    for folder, ratio in (("t2i/m/e", 0.4), ("t2i/m/f", 0.3)):
        job(outputs / folder, ratio=ratio)
    commands = {
        "first": ("seed=0,1,2", ["t2i/m/a", "t2i/m/b", "t2i/m/e!"]),
        "again": ("seed=2", ["t2i/m/e"]),
        "other": ("~distill seed=3", ["t2i/m/f"]),
    }
    for name, (words, folders) in commands.items():
        recorded(outputs, name, folders, words=words)
    page = published(outputs) / "t2i/x/main"
    assert len(read_rows([page])) == 3 and json.loads((page / "sweep.json").read_text())["jobs"] == 3
    assert "the others failed" not in (page / "README.md").read_text()


def test_one_bad_sweep_stops_no_other(outputs, capsys):
    recorded(outputs, "a-bad", ["t2i/m/a"], experiment="x/bad")
    (outputs / "sweeps/a-bad/jobs/000000.json").write_text("{")
    recorded(outputs, "b-empty", ["t2i/m/gone"], experiment="x/gone")
    recorded(outputs, "good", ["t2i/m/a", "t2i/m/b"], {**TABLE, "lines": [{"name": "any", "published": ["1"], "ours": {}}]})
    pages = published(outputs, code=1)
    told = capsys.readouterr().err.splitlines()
    assert (
        len(told) == 3
        and "has no finished job" in told[1]
        and told[0].startswith(f"not published: {outputs / 'sweeps' / 'a-bad'}: ")
        and "000000.json is damaged" in told[0]
    )
    assert "means 2 rows" in told[2]
    assert "No table beside the published one (Table 7): " in (pages / "t2i/x/main/README.md").read_text()
    assert "x/main" in (pages / "README.md").read_text() and "x/bad" not in (pages / "README.md").read_text()


def test_deleted_jobs_and_pictures_of_them(outputs):
    recorded(outputs, "s", ["t2i/m/a", "t2i/m/b"], jobs=4)
    folder = published(outputs) / "t2i/x/main"
    assert "2 of 4 jobs" in (folder / "README.md").read_text()
    (folder / "2-fd_effnet.png").touch()
    (folder / "samples.webp").touch()
    shutil.rmtree(outputs / "t2i/m/b")
    published(outputs)
    assert "1 of 4 jobs" in (folder / "README.md").read_text() and len(read_rows([folder])) == 1
    assert sorted(path.name for path in folder.iterdir() if path.suffix in (".png", ".webp")) == [
        "caption_retrieval.png",
        "fd_effnet.png",
    ]


def test_jobs_of_the_same_name_have_each_a_line_of_samples(outputs, monkeypatch, tmp_path):
    rows = read_rows([outputs / "t2i"])
    images = dict.fromkeys(("teacher", "distilled"), torch.zeros(8, 3, 4, 4, dtype=torch.uint8))
    drawn = {}
    monkeypatch.setattr(sample_sheet, "labels", lambda rows: ["same"] * len(rows))
    monkeypatch.setattr(sample_sheet, "first_samples", lambda row: images)
    monkeypatch.setattr(jobs.Job, "prompts", Prompts([""] * 8))
    monkeypatch.setattr(job_report, "draw_samples", lambda path, lines, captions: drawn.update(lines))
    sample_sheet.draw_sheet(rows, tmp_path / "samples.webp")
    assert list(drawn) == ["teacher", "same", "same b"]


def test_the_newest_additivity_of_a_task(tmp_path):
    figures = {"pearson": 0.91, "spearman": 0.92, "within": 0.93, "slope": 1.5}
    for name, time in (("old", 1), ("new", 2)):
        criteria = {"output": {"own": figures, "output": figures}, "random": {"own": None, "output": figures}}
        path = tmp_path / "outputs/t2i/additivity" / name / "additivity.json"
        write_json(path, {"name": name, "sizes": [2, 4], "layers": 38, "criteria": criteria})
        os.utime(path, (time, time))
    Image.new("RGB", (4, 4)).save(tmp_path / "outputs/t2i/additivity/new/additivity.png")
    pages = published(tmp_path / "outputs")
    folder = pages / "t2i/laptop_diff/additivity"
    assert json.loads((folder / "additivity.json").read_text())["name"] == "new" and (folder / "additivity.png").is_file()
    text = (folder / "README.md").read_text()
    assert "| output | 0.91 | 0.92 | 0.93 | 1.50 | 0.91 |" in text and "| random |  |  |  |  | 0.91 |" in text
    assert "`python -m experiments.additivity task=t2i`" in (pages / "README.md").read_text()


def test_a_sweep_becomes_pages(tiny_teacher_folder, tmp_path):
    outputs, pages = tmp_path / "outputs", tmp_path / "pages"
    script, *arguments = small_job("t2i", tiny_teacher_folder, outputs, "experiment=ld_pruner/table3", "evaluation.every=2")
    done = run(script, "-m", *arguments)
    assert done.returncode == 0, done.stderr
    assert "LD-Pruner, table 3" in done.stdout and "389.96" in done.stdout
    (report,) = outputs.glob("sweeps/*/report/index.html")
    assert "389.96" in report.read_text()
    done = run("-m", "experiments.publish", str(outputs), "--out", str(pages))
    assert done.returncode == 0, done.stderr
    folder = pages / "t2i" / "ld_pruner" / "table3"
    text = (folder / "README.md").read_text()
    assert "| preserved, 50k | 15.43 | \\| |" in text and f"outputs={outputs}" not in text and " of 2 jobs" not in text
    assert sorted(path.name for path in folder.glob("*.png"))[0] == "caption_retrieval.png"
    with Image.open(folder / "samples.webp") as sheet:
        assert sheet.width > sheet.height  # the teacher and two students, eight samples each
    rows = read_rows([pages])
    assert len(rows) == 2 and {row["settings"]["init"] for row in rows} == {"preserved", "scratch"}
    assert all(is_figure(name) for row in rows for name in flat(row["models"]["distilled"]))
    assert "t2i/ld_pruner/table3/README.md" in (pages / "README.md").read_text()
    lines = folder / "rows.jsonl"
    assert str(outputs) not in lines.read_text() and all(row["command"].startswith("python run.py ") for row in rows)
    lines.write_text(lines.read_text().splitlines()[0] + "\n{broken\n")
    assert len(read_rows([pages])) == 1
    assert "table 3" in json.loads((folder / "sweep.json").read_text())["table"]["title"]
    for path in outputs.glob("t2i/*/*"):
        shutil.rmtree(path / "plan")
        shutil.rmtree(path / "samples")
    done = run("-m", "experiments.publish", str(outputs), "--out", str(pages))
    assert done.returncode == 0 and "not published" not in done.stderr and "left out" not in done.stderr, done.stderr
    assert len(read_rows([pages])) == 2 and not (folder / "samples.webp").exists()


def test_published_pages_name_no_place_on_the_machine_that_wrote_them():
    files = [path for path in (ROOT / "experiments" / "results").rglob("*") if path.suffix in (".json", ".jsonl", ".md")]
    assert len(files) > 10
    assert [path for path in files if "outputs=" in (text := path.read_text()) or '"/' in text or "=/" in text] == []


def test_nothing_to_publish_and_a_file_for_a_folder_are_told(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for out, told in ((tmp_path / "out", "No sweep of an experiment"), (tmp_path / "file", "is a file; name a folder")):
        with pytest.raises(SystemExit):
            publish(argparse.Namespace(outputs=tmp_path / "empty", out=out))
        assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
