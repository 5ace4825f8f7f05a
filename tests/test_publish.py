"""A sweep of real small jobs, published: pages, rows that can be read again, samples."""

import json

from PIL import Image

from experiments.rows import read_rows
from tests.commands import run
from tests.small_jobs import job


def test_a_sweep_becomes_pages(tiny_teacher_folder, tmp_path):
    outputs, pages = tmp_path / "outputs", tmp_path / "pages"
    script, *arguments = job("t2i", tiny_teacher_folder, outputs, "experiment=ld_pruner/table3", "evaluation.every=2")
    done = run(script, "-m", *arguments)
    assert done.returncode == 0, done.stderr
    assert "LD-Pruner, table 3" in done.stdout and "389.96" in done.stdout
    (report,) = outputs.glob("sweeps/*/report/index.html")
    assert "389.96" in report.read_text()
    done = run("-m", "experiments.publish", str(outputs), "--out", str(pages))
    assert done.returncode == 0, done.stderr
    folder = pages / "ld_pruner" / "table3-t2i"
    text = (folder / "README.md").read_text()
    assert "| preserved, 50k | 15.43 | \\| |" in text and f"outputs={outputs}" not in text
    assert sorted(path.name for path in folder.glob("*.png"))[0] == "caption_retrieval.png"
    with Image.open(folder / "samples.webp") as sheet:
        assert sheet.width > sheet.height  # the teacher and two students, eight samples each
    assert len(read_rows([pages])) == 2 and {row["settings"]["init"] for row in read_rows([pages])} == {"preserved", "scratch"}
    assert "ld_pruner/table3-t2i/README.md" in (pages / "README.md").read_text()
    rows = folder / "rows.jsonl"
    rows.write_text(rows.read_text().splitlines()[0] + "\n{broken\n")
    assert len(read_rows([pages])) == 1
    assert "table 3" in json.loads((folder / "sweep.json").read_text())["table"]["title"]
