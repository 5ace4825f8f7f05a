"""Scores by a command of another environment: what it is handed, and what is made of its answers."""

import shlex
import sys

import pytest
import torch

from common.errors import InputError
from common.metrics.external import ExternalScores

SCRIPT = """
import json, sys
from pathlib import Path
from PIL import Image
folder = Path(sys.argv[-1])
lines = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
print("loading a large network")
brightness = [Image.open(folder / line["file"]).getpixel((0, 0)) for line in lines]
brightness = [value[0] if isinstance(value, tuple) else value for value in brightness]
print(json.dumps({"brightness": brightness, "letters": [len(line["prompt"]) for line in lines]}))
"""


def command(folder, script):
    path = folder / "score it.py"
    path.write_text(script)
    return shlex.join([sys.executable, str(path)])


def images(*values, channels=3):
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, channels, 5, 4)


def test_each_image_has_its_score(tmp_path):
    metric = ExternalScores(command(tmp_path, SCRIPT), ("brightness", "letters"))
    metric.load(torch.device("cpu"))
    rows = metric.rows_of([(images(10, 20), ["a", "bcd"]), (images(30), ["ef"])])
    assert rows.tolist() == [[10, 1], [20, 3], [30, 2]]
    assert metric.figures(rows, None, 0)(torch.tensor([0, 2])) == {"brightness": 20.0, "letters": 1.5}
    assert metric.rows_of([(images(7, channels=1), None)]).tolist() == [[7, 0]]


def test_the_command_is_a_process_of_its_own(tmp_path, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "SLURM_PROCID", "PYTHONPATH"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("HF_HOME", "kept")
    script = "import os; print('{\"a\": [%d]}' % sum(os.environ.get(n) is not None for n in "
    script += "('RANK', 'WORLD_SIZE', 'MASTER_PORT', 'TORCHELASTIC_RUN_ID', 'SLURM_PROCID', 'PYTHONPATH', 'HF_HOME')))"
    assert ExternalScores(command(tmp_path, script), ("a",)).rows_of([(images(1), None)]).tolist() == [[1]]


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("raise SystemExit('no weights')", r"ended with 1: no weights"),
        ("print('well')", r'is no \{"a": \[\.\.\.\]\} of numbers: well'),
        ("print('{\"b\": [1, 2]}')", "of numbers"),
        ("print('{\"a\": [1]}')", "2 finite numbers of each score are needed"),
        ("print('{\"a\": [1, NaN]}')", "2 finite numbers"),
        ('print(\'{"a": [1, "x"]}\')', "of numbers"),
        ("print('[1, 2]')", "of numbers"),
        ("import time; time.sleep(60)", "did not end within 1 s"),
        ("", "of numbers"),
        ("import sys; sys.stdout.buffer.write(b'well \\xff')", "of numbers: well"),
        ("import sys; sys.stderr.buffer.write(b'\\xff no'); sys.exit(3)", "ended with 3: . no"),
        ("print('{\"a\": [1, 1' + 400 * '0' + ']}')", "numbers"),
        ("print('[' * 100000)", "of numbers"),
    ],
)
def test_bad_answers_are_told(tmp_path, script, told):
    metric = ExternalScores(command(tmp_path, script), ("a",), timeout=1 if "sleep" in script else None)
    with pytest.raises(InputError, match=told):
        metric.rows_of([(images(1, 2), None)])


def test_a_command_is_needed():
    with pytest.raises(InputError, match=r"metrics\.external: give the command"):
        ExternalScores(None, ()).load(torch.device("cpu"))
    with pytest.raises(InputError, match=r"metrics\.external: give the command"):
        ExternalScores("  ", ("a",)).load(torch.device("cpu"))
    with pytest.raises(InputError, match=r"metrics\.external\.command=python \"x\.py: No closing quotation"):
        ExternalScores('python "x.py', ("a",)).load(torch.device("cpu"))
    with pytest.raises(InputError, match="there is no nowhere/python that could be run"):
        ExternalScores("nowhere/python x.py", ("a",)).load(torch.device("cpu"))
