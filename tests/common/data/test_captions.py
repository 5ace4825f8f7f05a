"""Tables of prompts and captions are read as what their endings say, or refused in one line; never as raw lines."""

import json
import os

import pytest

from common.data.captions import read_metadata, read_prompts, read_table
from common.errors import InputError

TEXTS = ["a red cube", "a cup for $5, hot", '"G I G G L E" painted', "$$ two dogs $_$ and {x}"]


def quoted(separator, *rows):
    return "".join(separator.join('"' + cell.replace('"', '""') + '"' for cell in row) + "\n" for row in rows)


LAYOUTS = {
    "parti.tsv": "Prompt\tCategory\tNote\n" + "".join(f"{text}\tAnimals\t\n" for text in TEXTS),  # quotation marks as they are
    "sheet.TSV": quoted("\t", ("id", "Text"), *((str(i), text) for i, text in enumerate(TEXTS))),
    "PROMPTS.CSV": quoted(",", ("file_name", "text"), *((f"{i}.png", text) for i, text in enumerate(TEXTS))),
    "windows.csv": "\ufeffCaption\r\n" + quoted(",", *((text,) for text in TEXTS)).replace("\n", "\r\n"),
    "benchmark.json": json.dumps([{"id": str(i), "prompt": text} for i, text in enumerate(TEXTS)], indent=1),
    "texts.json": json.dumps(TEXTS),
    "lines.JSONL": "".join(json.dumps({"PROMPT": text}) + "\n" for text in TEXTS),
    "lines.TXT": "".join(f"{text}\n" for text in TEXTS),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_one_set_of_prompts_in_every_layout(tmp_path, name):
    (tmp_path / name).write_bytes(LAYOUTS[name].encode())
    assert read_prompts(tmp_path / name) == (TEXTS, 0)


@pytest.mark.parametrize(
    ("name", "text", "prompts", "empty"),
    [
        ("a.csv", 'text,n\n"two\nlines",1\n\n"  ",2\nlast,3\n', ["two\nlines", "last"], 2),
        ("a.tsv", 'text\tn\n"two\nlines"\t1\n\t2\n', ["two\nlines"], 1),
        ("a.json", '["a", "", {"caption": ["b", "c"]}, {"text": null}, {"text": {"raw": "d"}}, {"text": NaN}]', ["a", "b"], 4),
        ("a.jsonl", '{"text": "a"}\n\n"b"\n{"caption": "half \\ud83d"}\n', ["a", "b", "half \ufffd"], 1),
        ("a.txt", "a\r\n\r\nb", ["a", "b"], 1),
    ],
)
def test_blank_ones_are_counted_and_what_is_no_text_is_none(tmp_path, name, text, prompts, empty):
    (tmp_path / name).write_text(text, newline="")
    assert read_prompts(tmp_path / name) == (prompts, empty)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.parquet", "PAR1", "its ending is none of .csv, .tsv, .json, .jsonl, .txt"),
        ("a", "a cat", "its ending is none of"),
        ("a.csv.gz", "a cat", "its ending is none of"),
        ("a.csv", "prompt,text\na,b\n", "has several columns of prompts, prompt and text: keep one"),
        ("a.tsv", "Prompt\tprompt\na\tb\n", "has several columns of prompts, Prompt and prompt: keep one"),
        ("a.tsv", "name\tlabel\na\tb\n", "has the columns name, label, none of prompt, text, caption"),
        ("a.csv", "text,text\na,b\n", "has the column 'text' 2 times"),
        ("a.csv", "file_name,text\n1.png,a cat, sitting\n", "damaged in line 2: it has 3 fields, and its header names 2"),
        ("a.csv", 'text\n"never closed\n', "is damaged in line 2: unexpected end of data"),
        ("a.json", '{"info": {}, "annotations": []}', r"holds one object \(info, annotations\): a list of texts"),
        ("a.json", '"a cat"', "holds a JSON str: a list"),
        ("a.json", '["a", 3]', "entry 2 is neither a text nor an object"),
        ("a.json", "[", "is damaged: "),
        ("a.json", "[]", "holds no prompt"),
        ("a.jsonl", '{"text": "a"}\n[1]\n', "damaged in line 2: each line must hold a JSON object"),
        ("a.csv", b"text\n\xe9t\xe9\n", "is no UTF-8 text"),
    ],
)
def test_what_is_no_list_of_prompts_is_one_line(tmp_path, name, text, expected):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=expected) as told:
        read_prompts(tmp_path / name)
    assert "\n" not in str(told.value) and str(tmp_path / name) in str(told.value)


@pytest.mark.parametrize("ending", ["csv", "txt"])
def test_a_pipe_is_not_waited_for(tmp_path, ending):
    os.mkfifo(tmp_path / f"a.{ending}")
    with pytest.raises(InputError, match="it is a pipe"):
        read_prompts(tmp_path / f"a.{ending}")


def test_metadata_in_capitals_and_its_columns(tmp_path):
    (tmp_path / "METADATA.CSV").write_text("File_Name,TEXT\nA.png,a cat\n\nsub/../b.png,a dog\n")
    assert read_metadata(tmp_path, "text") == (["A.png", "b.png"], ["a cat", "a dog"])
    (tmp_path / "metadata.jsonl").write_text("{}")
    with pytest.raises(InputError, match=r"holds METADATA\.CSV, metadata\.jsonl: one of them is needed"):
        read_metadata(tmp_path, "text")


@pytest.mark.parametrize("outside", ["../x.png", "../../etc/x.png", "a/../../x.png", "/etc/x.png"])
def test_metadata_names_no_files_outside(tmp_path, outside):
    folder = tmp_path / "data"
    (folder / "part").mkdir(parents=True)
    row = {"file_name": outside if outside.startswith("/") else f"../{outside}", "text": "x"}
    (folder / "part" / "metadata.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match="names 1 files outside of .*: move them inside, or put links"):
        read_metadata(folder, "text")


def test_names_that_stay_inside_and_links_there_are_allowed(tmp_path):
    folder = tmp_path / "data"
    (folder / "part").mkdir(parents=True)
    (folder / "link.png").symlink_to(tmp_path / "elsewhere.png")
    names = ["../link.png", f"{folder}/a.png", "..b/c.png"]
    (folder / "part" / "metadata.csv").write_text("file_name,text\n" + "".join(f"{name},x\n" for name in names))
    assert read_metadata(folder, "text")[0] == ["link.png", "a.png", "part/..b/c.png"]


def test_a_table_without_rows(tmp_path):
    (tmp_path / "a.csv").write_text("")
    assert list(read_table(tmp_path / "a.csv")) == []
