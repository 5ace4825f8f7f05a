"""The report as a browser shows it: one file, plots that follow the choices, a table that sorts."""

import argparse
import io
import shutil
import wave

import pytest
from PIL import Image

from experiments.report import report
from experiments.reporting.page import outcome, write_report
from experiments.reporting.rows import read_rows
from tests.experiments.reporting.test_curves import extend
from tests.experiments.test_collect import job

PAPER = {
    "title": "Table <7>",
    "source": "a paper",
    "columns": ["FID"],
    "lines": [{"name": "half", "published": ["12.37"], "ours": {"method.ratio": 0.25}}],
}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs")
    for name, method, ratio in (("a", "laptop_diff", 0.5), ("b", "magnitude", 0.33), ("c", "laptop_diff", 0.25)):
        row = job(folder / name, method, ratio)
        models = {
            who: {**figures, "fid": figures["fd_effnet"] / 100, "pickscore": 20 + ratio, "macs": 1000}
            for who, figures in row["models"].items()
        }
        extend(folder / name, models=models)
    extend(folder / "a", curve=[{"step": 10, "fd_effnet": 1900.0}])
    extend(folder / "b", by_steps={"50": {who: {"fd_effnet": 1400.0} for who in ("teacher", "pruned", "distilled")}})
    job(folder / "d", steps=50)
    Image.new("RGB", (1800, 300), "red").save(folder / "a" / "samples.png")
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(1600))
    (folder / "a" / "sounds").mkdir()
    (folder / "a" / "sounds" / "teacher_0.wav").write_bytes(sound.getvalue())
    return write_report(read_rows([folder]), folder / "report", "A <b>title</b>", ["one job failed"], PAPER)


def test_the_page_is_one_file_and_its_plots_lie_beside_it(page):
    names = sorted(path.name for path in page.parent.iterdir())
    assert {"1-fd_effnet.png", "1-fid.png", "1-pickscore.png", "2-fd_effnet.png", "index.html"} <= set(names)
    text = page.read_text()
    assert "<h1>A &lt;b&gt;title&lt;/b&gt;</h1>" in text and "one job failed" in text
    assert "data:image/webp;base64," in text and "data:audio/wav;base64," in text
    assert "Table &lt;7&gt;" in text and "<td>12.37</td>" in text and "<td>50%</td>" in text
    assert '<script src="' not in text and "<link" not in text
    assert text.count("<code>python run.py method=laptop_diff</code>") >= 3
    assert "fd_effnet<" not in text and ">laptop_diff" not in text  # names of rows and of the command line
    assert "About 50% of the parameters left: LAPTOP-Diff 0.5 is best, MSE to the teacher " in text


def test_the_command_writes_the_page(tmp_path, capsys):
    job(tmp_path / "a")
    report(argparse.Namespace(folders=[tmp_path], out=tmp_path / "out"))
    assert "1 jobs: " in capsys.readouterr().out and (tmp_path / "out" / "index.html").is_file()


@pytest.fixture(scope="module")
def browser():
    from playwright import sync_api

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs Chromium")
    with sync_api.sync_playwright() as started:
        found = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.exhaustive
def test_plots_and_table_in_a_browser(page, browser, width, tmp_path):
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
    tab = context.new_page()
    errors, requests = [], []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(page.as_uri(), timeout=120_000)
    tab.wait_for_selector("section .over-cost .main-svg", timeout=120_000)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    first = tab.locator("section").first

    def drawn(kind):
        script = "place => place.data.map(trace => [trace.name, trace.x.length])"
        return dict(first.locator(f".over-{kind}").evaluate(script))

    first.locator(".metric").select_option("fd_effnet")
    assert drawn("cost") == {"Pareto front": 1, "LAPTOP-Diff": 2, "magnitude": 1}
    assert drawn("training") == {"LAPTOP-Diff 0.5": 3}
    assert drawn("sampling") == {"magnitude 0.33": 2, "teacher": 2}
    first.locator(".cost").select_option("ratio")
    first.locator(".metric").select_option("fid")
    assert drawn("cost") == {"LAPTOP-Diff": 2, "magnitude": 1}
    titles = first.locator(".over-cost").evaluate("place => [place.layout.xaxis.title.text, place.layout.yaxis.title.text]")
    assert titles == ["method.ratio", "FID"]
    assert not first.locator(".over-training").is_visible()
    assert first.locator(".over-cost").evaluate("place => place.data[0].text") == ["LAPTOP-Diff 0.25", "LAPTOP-Diff 0.5"]
    hover = first.locator(".over-cost").evaluate("place => place.data[0].customdata[0]")
    assert "python run.py method=laptop_diff" in hover
    column = first.locator("th button", has_text="PickScore")
    assert not column.is_visible()
    first.locator(".chooser input").check()
    for order in (1, -1):
        column.click()
        index = first.locator("th").all_inner_texts().index(column.inner_text())
        values = [float(row.locator("td").nth(index).inner_text()) for row in first.locator("tbody tr").all()]
        assert values == sorted(values, reverse=order < 0) and len(values) == 3
    assert errors == [] and [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    first.locator("summary").first.click()
    tab.screenshot(path=tmp_path / "page.png", full_page=True)
    context.close()
    with Image.open(tmp_path / "page.png") as shot:
        assert shot.width == width


def test_the_best_of_one_size_is_told_with_what_seeds_and_samples_can_make(tmp_path):
    """By the mean over seeds, in pairs: a difference that is the same in every group is told although each interval is wide."""
    groups = [float(place % 7) for place in range(20)]
    for method, by in (("laptop_diff", 0.0), ("magnitude", 0.5)):
        for seed in (0, 1):
            folder = tmp_path / f"{method}{seed}"
            row = job(folder, method)
            own = 3.0 + by + 0.01 * seed
            for figures in row["models"].values():
                figures |= {"feature_mse": own, "feature_mse_replicates": [value + own for value in groups]}
            settings = {**row["settings"], "seed": seed, "method": {**row["settings"]["method"], "name": method}}
            extend(folder, models=row["models"], settings=settings)
    (told,) = outcome(read_rows([tmp_path]))
    best, _, second = told.partition("; next ")
    assert best.startswith("About 50% of the parameters left: LAPTOP-Diff 0.5 ")
    assert best.endswith(" is best, features to the teacher 3.005")
    assert second.startswith("magnitude 0.5 ") and ", 3.505 (worse by 0.500 ±0.0" in second
    assert "alone can make" not in told
