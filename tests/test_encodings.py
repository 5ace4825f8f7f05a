"""Files are UTF-8 whatever the locale is, and a terminal that knows few characters stops no table."""

import ast
import io
import os
import subprocess
import sys
from functools import lru_cache

import pytest

from common.runtime.files import ROOT
from experiments.reporting.job_table import print_rows
from experiments.reporting.rows import read_rows
from experiments.shared.streams import print_what_can_be_printed
from tests.experiments.test_collect import job
from tests.test_imports import PACKAGES

pytestmark = pytest.mark.slow

TEXT = ("read_text", "write_text", "open", "fdopen", "TextIOWrapper", "NamedTemporaryFile")


@lru_cache
def sources():
    paths = [ROOT / "run.py", *(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))]
    return {path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def named(call):
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def needs_encoding(call):
    """Whether a call reads or writes text without saying in which encoding."""
    name = named(call)
    if name not in TEXT or any(keyword.arg == "encoding" for keyword in call.keywords):
        return False
    if name in ("read_text", "write_text"):
        return isinstance(call.func, ast.Attribute)  # common.runtime.files.write_text is UTF-8
    owner = getattr(call.func, "value", None)
    if owner is not None and getattr(owner, "id", "") not in ("io", "os", "tempfile", "path"):  # Image.open, tarfile.open
        return False
    modes = [
        value.value
        for value in (*call.args[1:2], *(k.value for k in call.keywords if k.arg == "mode"))
        if isinstance(value, ast.Constant)
    ]
    return not any("b" in str(mode) for mode in modes) and not (name == "open" and getattr(owner, "id", "") == "os")


def test_text_is_read_and_written_as_utf_8():
    """But for what json.loads is given: JSON of this project, and of diffusers, is ASCII."""
    seen, bare = 0, []
    for path, tree in sources().items():
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        parsed = {id(argument) for call in calls if named(call) == "loads" for argument in call.args}
        for call in calls:
            seen += named(call) in TEXT
            if needs_encoding(call) and id(call) not in parsed:
                bare.append(f"{path}:{call.lineno}")
    assert seen > 50 and not bare, bare


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", "2500>1600"), ("latin-1", "2500>1600"), ("utf-8", "2500→1600")])
def test_tables_on_any_stream(tmp_path, monkeypatch, encoding, shown):
    job(tmp_path / "a")
    rows = read_rows([tmp_path])
    rows[0]["settings"]["teacher"]["path"] = "café 猫 \udcff"
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    print_what_can_be_printed()
    print_rows(rows)
    sys.stdout.flush()
    text = written.getvalue().decode(encoding)
    assert shown in text and "LAPTOP-Diff" in text
    assert {"ascii": "cafe \\u732b", "latin-1": "café \\u732b", "utf-8": "café 猫"}[encoding] + " \\udcff" in text


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_command_on_a_terminal_of_few_characters(tmp_path, encoding):
    job(tmp_path / "a")
    (tmp_path / "é").mkdir()
    (tmp_path / "é" / "result.json").write_text("{")
    command = [sys.executable, "-m", "experiments.collect", str(tmp_path)]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"2500>1600" in done.stdout
    assert f"left out: {tmp_path}/".encode() + {"ascii": b"e", "latin-1": b"\xe9"}[encoding] in done.stderr


def test_help_of_every_command_is_ascii():
    """argparse prints the module's docstring before anything can see to the stream."""
    shown = [ast.get_docstring(tree) or "" for path, tree in sources().items() if path.parts[0] == "experiments"]
    assert len(shown) > 50 and all(text.isascii() for text in shown)
