"""A person's text is text in every medium: pictures, the terminal, Markdown, HTML, messages."""

import argparse
import ast
import io
import json
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from markdown_it import MarkdownIt
from PIL import Image

from common.data.image_folder import load_image_folder
from common.data.splits import tell
from common.errors import InputError
from common.runtime.progress import progress_bar
from common.shown_text import code_block, code_span, markdown_text, one_line, shortened, spelt_out, visible
from experiments.exporting.model_card import write_card
from experiments.reporting import curves, figures, job_report, result_pages
from experiments.reporting import page as report_page
from experiments.reporting.figures import CAPTION_LINES, LABEL, logarithmic, picture_caption, picture_label, plotting
from experiments.reporting.job_table import print_rows
from experiments.reporting.page import write_report
from experiments.reporting.paper_table import markdown, print_paper_table
from experiments.reporting.result_pages import write_page
from experiments.reporting.rows import group_name, read_rows
from experiments.shared.command_line import one_line_errors
from experiments.sweeps.result_index import write_index
from tests.commands import run
from tests.experiments.test_collect import job
from tests.experiments.test_export import make_job, small_folder  # noqa: F401
from tests.small_jobs import job as small_job
from tests.small_jobs import the_row
from tests.test_encodings import sources

NASTY = [
    "a cup for $5 #2 for $9",
    "$$ two dogs $_$ and {x} $\\frac{1}$",
    "my_[model]$x",
    "[red]danger[/] [/] [link=x]y[/link] :smile:",
    "<script>alert('a')</script> <b>b</b> &amp; &lt;",
    "`a` ``b`` ```c``` | d \\| \\ \\",
    "*a* _b_ __c__ ~~d~~ snake_case_name # 1. - > ![i](j) [k](l) <http://m>",
    "_hidden",
    "\x1b[31mred\x1b[0m\x07 \u202eright\u202c",
    "two\nlines\tand a half \udcff\ud83d",
]
HARD = [text for text in NASTY if text == one_line(text)]


class Reader(HTMLParser):
    """The text of a page, its elements, and the text of each."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.parts = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        self.parts.append(("", dict(attributes)))

    def handle_data(self, text):
        self.parts.append((text, {}))

    @property
    def text(self):
        return "".join(text for text, _ in self.parts)


def rendered(text):
    return Reader(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text))


def row_of(folder, text, **changes):
    """A job's row that bears a person's text wherever one may stand."""
    row = job(folder)
    row["settings"]["teacher"]["path"] = text
    row["settings"]["method"]["criterion"] = text
    row["choices"] |= {"method": text, "distill": text}
    row["command"] = f"python run.py note={text}"
    (folder / "result.json").write_text(json.dumps(row | changes))
    return read_rows([folder])[0]


@pytest.mark.parametrize("text", NASTY)
def test_markdown(text):
    shown = one_line(text)
    heading = rendered(f"# {markdown_text(text)}, after")
    assert heading.elements == ["h1"] and heading.text.strip() == f"{shown}, after"
    table = rendered(markdown([markdown_text(text), "n"], [[markdown_text(text), code_span(text)]]))
    assert table.elements == ["table", "thead", "tr", "th", "th", "tbody", "tr", "td", "td", "code"]
    assert [part.strip() for part, _ in table.parts if part.strip()] == [shown, "n", shown, shown]
    assert rendered(f"x {code_span(text)} y").text.strip() == f"x {shown} y"
    block = rendered(code_block(f"{text}\n```\n# a", "text"))
    assert block.elements == ["pre", "code"] and block.text.rstrip() == f"{visible(text)}\n```\n# a"


def test_pages_in_markdown(tmp_path, monkeypatch):
    monkeypatch.setattr(result_pages, "write_group", lambda *_: {})  # the pictures
    rows = [row_of(tmp_path / str(index), text) for index, text in enumerate(HARD)]
    for index, (text, row) in enumerate(zip(HARD, rows, strict=True)):
        table = {"title": text, "source": text, "columns": [text], "lines": [{"name": text, "published": [text], "ours": {}}]}
        sweep = {"command": f"run {text}", "experiment": text, "task": text, "table": table, "jobs": 1}
        write_page(sweep, [row], 1, tmp_path / "pages" / f"task{index}" / "page")
        found = rendered((tmp_path / "pages" / f"task{index}" / "page" / "README.md").read_text(encoding="utf-8"))
        assert set(found.elements) <= {"h1", "h2", "p", "pre", "code", "img", "table", "thead", "tbody", "tr", "th", "td"}
        assert found.text.startswith(f"{text}, {text}\nrun {text}\n") and f"{group_name(row)}\n" in found.text
        assert found.text.count(text) >= 9
    write_index(tmp_path / "pages")
    index = rendered((tmp_path / "pages" / "README.md").read_text(encoding="utf-8"))
    assert set(index.elements) <= {"h1", "h2", "ul", "li", "p", "a", "br", "code"}
    assert all(index.text.count(text) == 3 for text in HARD)


@pytest.mark.parametrize("text", HARD)
def test_cards_of_students(text, small_folder, tmp_path):  # noqa: F811
    row = make_row(small_folder, tmp_path)
    row["settings"]["teacher"]["path"] = f"/models/{text.replace('/', '-')}"
    row["settings"]["task"]["data"]["folder"] = text.replace("/", "-")
    row["settings"]["distill"] |= {"note": text}
    row["choices"] = {"method": text, "distill": text}
    row["plan"][0]["site"] = text
    row["command"] = f"python run.py 'note={text}'"
    found = {"denoiser": "PrunedUNet", "pipeline": None, "reason": text, "latents": {"max_relative": 0.0}}
    write_card(row, tmp_path, found, {}, None, ".")
    page = (tmp_path / "README.md").read_text(encoding="utf-8").split("---\n", 2)[2]
    shown = rendered(page)
    assert not {"script", "b", "a", "em", "strong", "s"} & set(shown.elements) and shown.text.count(text) >= 5


ROW = {}


def make_row(teacher_folder, folder):
    """The row of a finished job, made once."""
    if not ROW:
        ROW["made"] = json.dumps(make_job(folder / "job", teacher_folder))
    return json.loads(ROW["made"])


@pytest.mark.parametrize("text", NASTY)
def test_html(tmp_path, monkeypatch, text):
    monkeypatch.setattr(report_page, "draw_curves", lambda *_: None)  # the pictures beside it
    row = row_of(tmp_path / "job", text)
    paper = {"title": text, "source": text, "columns": [text], "lines": [{"name": text, "published": [text], "ours": {}}]}
    path = write_report([row], tmp_path / "report", text, [text], paper)
    content = re.sub(r"<script>.*?</script>", "<script></script>", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = Reader(content)
    spelt = text.encode("utf-8", "backslashreplace").decode()
    assert found.elements.count("script") == 2 and "b" not in found.elements and found.text.count(spelt) >= 8
    (plots,) = [attributes["data-plots"] for _, attributes in found.parts if "data-plots" in attributes]
    assert json.loads(plots)["jobs"][0]["series"].startswith(text)


def test_names_in_interactive_plots_are_escaped():
    """Plotly takes a trace's name for HTML."""
    script = (curves.__file__).replace("curves.py", "page.html")
    with open(script, encoding="utf-8") as handle:
        names = re.findall(r"\bname(?:: ([^,]+))?, mode:", handle.read())
    assert names == ["escaped(name)", '"Pareto front"', "escaped(name)"]


@pytest.mark.parametrize("text", NASTY)
def test_tables_on_the_terminal(tmp_path, capsys, text):
    row = row_of(tmp_path / "job", text)
    row["settings"]["method"]["ratio"] = "x"
    print_rows([row])
    print_paper_table([row], {"title": text, "source": text, "columns": [], "lines": [{"name": text, "ours": {}}]})
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\u202e" not in out
    flat = "".join(out.split())
    assert flat.count("".join(visible(text).split())) >= 3  # beside what its column folds


@pytest.mark.parametrize("text", NASTY)
def test_messages_on_standard_error(capsys, text):
    tell("folder", [1, 2], "skipped", [text])
    with progress_bar(text, 1) as bar:
        bar.advance(note="[/]")

    @one_line_errors
    def command(arguments):
        raise InputError(f"{text}: is wrong")

    with pytest.raises(SystemExit):
        command(argparse.Namespace())
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first == f"folder: 1 of 2 files skipped ({spelt_out(text)})"
    assert last == f"error: {one_line(text)}: is wrong"


def test_a_progress_bar_shows_its_words(capsys):
    with progress_bar("[red]a[/] [/]", 1) as bar:
        bar.advance(note="[b]")
    err = capsys.readouterr().err
    assert "[red]a[/] [/]" in err and "[b]" in err


def test_file_names_that_are_no_text_are_spelt_out(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for name in (b"\xff.png", b"\x1b[31m.png", b"two\nlines.png"):
        with open(os.path.join(os.fsencode(tmp_path), name), "w") as handle:
            handle.write("no picture")
    assert len(load_image_folder(tmp_path, "train", 8)) == 1
    assert r"(\x1b[31m.png: not an image; two\nlines.png: not an image; \udcff.png: not an image)" in capsys.readouterr().err


def texts_of(figure):
    """What a figure shows, after it was drawn."""
    from matplotlib.text import Text

    figure.savefig(io.BytesIO())
    return [text.get_text() for text in figure.findobj(Text)]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, instead of written."""
    made = []
    for module in (job_report, curves):
        monkeypatch.setattr(module, "save_figure", lambda figure, path, colours=None: made.append(figure))
    yield made
    for figure in made:
        plotting().close(figure)


def test_sheets_of_samples(tmp_path, drawn):
    images = torch.zeros(len(NASTY), 3, 8, 8, dtype=torch.uint8)
    job_report.draw_samples(tmp_path / "a.png", {"teacher": images}, NASTY, count=len(NASTY))
    job_report.draw_samples(tmp_path / "a.png", dict.fromkeys(NASTY, images), [""], count=1)
    shown = [*texts_of(drawn[0]), *texts_of(drawn[1])]
    for text in NASTY:
        assert picture_caption(text, 19) in shown and picture_caption(text, 18) in shown
        assert "".join(picture_caption(text, 19).split()) == "".join(one_line(text).split())


def test_a_caption_of_ten_thousand_characters_is_cut_in_pictures(tmp_path, drawn):
    captions = [
        "word " * 2000,
        "x" * 10_000,
        "a usual caption of some eighty characters, which is drawn whole as it was before",
    ]
    job_report.draw_samples(tmp_path / "a.png", {"teacher": torch.zeros(3, 3, 8, 8, dtype=torch.uint8)}, captions)
    titles = [axis.get_title() for axis in drawn[0].axes]
    assert all(title.count("\n") < CAPTION_LINES and max(map(len, title.split("\n"))) <= 19 for title in titles)
    assert titles[0].endswith(" ...") and titles[1].endswith("...") and titles[2].replace("\n", " ") == captions[2]


def test_curves(tmp_path, drawn):
    for index, text in enumerate(NASTY):
        row_of(tmp_path / str(index), text, curve=[{"step": 10, "fd_effnet": 1900.0}], by_steps={"50": None})
        path = tmp_path / str(index) / "result.json"
        row = json.loads(path.read_text())
        row["by_steps"]["50"] = row["models"]
        path.write_text(json.dumps(row))
    curves.draw_curves(read_rows([tmp_path]), tmp_path / "a.png")
    legends = [{text.get_text() for text in axis.get_legend().get_texts()} for axis in drawn[0].axes]
    for text in NASTY:
        assert all(any(picture_label(text)[:60] in label for label in legend) for legend in legends)
    assert "$" not in "".join(label.get_text() for axis in drawn[0].axes for label in axis.get_xticklabels(which="both"))


def test_labels_are_short_and_none_is_hidden():
    assert len(picture_label("x" * 500)) == LABEL and picture_label("_a") == " _a" and picture_label("a$b$") == "a$b$"
    assert shortened("a  b\n", 10) == "a b" and shortened("a" * 11, 10) == "aaaaaaa..."


def test_ticks_of_logarithmic_axes_are_numbers():
    figure, axis = plotting().subplots()
    axis.plot([1, 2], [1e-6, 2.0])
    logarithmic(axis, "y")
    figure.canvas.draw()
    labels = [label.get_text().replace("\N{MINUS SIGN}", "-") for label in axis.get_yticklabels()]
    assert np.allclose([float(label) for label in labels if label], axis.get_yticks()[: len(labels)])
    plotting().close(figure)


def test_pictures_and_consoles_begin_at_one_place():
    """matplotlib reads formulas and rich reads markup unless they are told not to."""
    wrong = []
    for path, tree in sources().items():
        for node in ast.walk(tree):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else names
            taken = {alias.name for alias in getattr(node, "names", []) if hasattr(alias, "name")}
            if str(path) != "experiments/reporting/figures.py" and (
                (names == ["matplotlib"] and "pyplot" in taken) or any(name.startswith("matplotlib.pyplot") for name in names)
            ):
                wrong.append(f"{path}: pyplot")
            if str(path) != "common/runtime/console.py" and (
                (names == ["rich.console"] and "Console" in taken) or names == ["rich"]
            ):
                wrong.append(f"{path}: rich")
            scale = getattr(node, "attr", None) in ("set_xscale", "set_yscale", "semilogy", "loglog")
            if scale or getattr(node, "arg", None) in ("xscale", "yscale"):
                wrong.append(f"{path}: a scale without experiments.reporting.figures.logarithmic")
    assert not wrong and figures.plotting().rcParams["text.parse_math"] is False


@pytest.mark.exhaustive
def test_a_whole_job_with_prompts_and_a_teacher_of_such_names(tiny_teacher_folder, tmp_path):
    teacher = tmp_path / "my_[model]$x [red]"
    teacher.symlink_to(tiny_teacher_folder)
    prompts = tmp_path / "Parti.TSV"
    prompts.write_text("Prompt\tNote\n" + "".join(f"{text}\t\n" for text in [*HARD, "word " * 2000, *["a cat"] * 7]))
    arguments = small_job("t2i", "", tmp_path / "outputs", f"evaluation.prompts='{prompts}'")
    arguments[arguments.index("teacher.path=")] = f"teacher.path='{teacher}'"
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    folder, row = the_row(tmp_path / "outputs")
    assert row["settings"]["teacher"]["path"] == str(teacher)
    assert {"samples.png", "plan.png", "scores.png"} <= {path.name for path in folder.iterdir()}
    assert "This job is done" in run(*arguments).stdout
    done = run("-m", "experiments.collect", str(tmp_path / "outputs"))
    assert done.returncode == 0 and "".join(str(teacher).split()) in "".join(done.stdout.split())
