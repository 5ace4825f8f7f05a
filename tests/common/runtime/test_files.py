"""The project's own files: whole or not at all, strict JSON, and named when they are damaged or refused."""

import errno
import json
import math
from pathlib import Path

import pytest
import torch

from common.errors import InputError
from common.runtime.files import check_writable, whole_folder, write_json
from common.runtime.strict_json import from_json, read_json, to_json
from experiments.shared.command_line import explain


def refuse_constant(name):
    raise ValueError(f"{name} is no JSON")


def test_json_is_strict_and_read_as_it_was():
    document = {"a": [math.nan, math.inf, -math.inf, 1.5], "b": {"c": "text", "d": None, "e": True, "f": (1, 2)}}
    text = to_json(document)
    strict = json.loads(text, parse_constant=refuse_constant)
    assert strict["a"] == ["NaN", "Infinity", "-Infinity", 1.5]
    read = from_json(text)
    assert math.isnan(read["a"][0]) and read["a"][1:] == [math.inf, -math.inf, 1.5]
    assert read["b"] == {"c": "text", "d": None, "e": True, "f": [1, 2]}
    assert math.isnan(from_json("[NaN]")[0])  # as rows were written before


@pytest.mark.parametrize("text", [b"", b'{"models": {', b"[1, 2]", b"{}", b"null", b"\xff\xfe\x00", b"[" * 100_000])
def test_damaged_json_is_named_with_the_remedy(tmp_path, text):
    path = tmp_path / "result.json"
    path.write_bytes(text)
    with pytest.raises(InputError, match=r"result\.json is damaged \(.+\); delete it and the job ends anew\.$") as told:
        read_json(path, "delete it and the job ends anew", ("models",))
    assert "\n" not in str(told.value)


def test_what_is_there_already_stays_when_writing_fails(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path, "") == {"a": 1} and [each.name for each in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("place", "told"),
    {
        "file": ("file/row/result.json", "Not a directory"),
        "long": (f"{'x' * 300}/result.json", "File name too long"),
        "no disk": ("/sys/bonsai/result.json", ""),
    }.values(),
)
def test_what_the_system_refuses_is_one_line_with_the_name(tmp_path, place, told):
    (tmp_path / "file").touch()
    path = tmp_path / place
    with pytest.raises(OSError) as refused:
        write_json(path, {})
    line = explain(refused.value)
    assert line.startswith(told) and f": {path.parent}; " in line and "\n" not in line


def test_a_folder_that_cannot_be_written_is_told_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/out cannot be written \(Not a directory\): give another out=<folder>"):
        check_writable(tmp_path / "file" / "out", "out")
    check_writable(tmp_path / "new" / "out", "out")
    assert list((tmp_path / "new" / "out").iterdir()) == []


def test_files_of_a_folder_can_be_read_by_whom_new_files_can(tmp_path):
    import torch
    from safetensors.torch import save_file

    with whole_folder(tmp_path / "student") as scratch:
        save_file({"weight": torch.zeros(2)}, scratch / "model.safetensors")
        (scratch / "plain.json").write_text("{}")
    weights, plain = (tmp_path / "student" / name for name in ("model.safetensors", "plain.json"))
    assert weights.stat().st_mode & 0o777 == plain.stat().st_mode & 0o777


def test_a_refusal_that_safetensors_says_in_words_is_understood(tmp_path):
    from safetensors import SafetensorError

    with pytest.raises(OSError) as refused, whole_folder(tmp_path / "student"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert refused.value.errno == errno.ENOSPC and explain(refused.value).startswith(
        f"No space left on device: {tmp_path}/student; "
    )
    assert not list(tmp_path.iterdir())


def test_other_errors_stay_what_they_are(tmp_path):
    for error in (InputError("told"), RuntimeError("unforeseen"), FileNotFoundError(2, "gone", "elsewhere")):
        with pytest.raises(type(error)) as raised, whole_folder(tmp_path / "student"):
            try:
                raise OSError(errno.ENOSPC, "an earlier one that was dealt with")
            except OSError:
                if not isinstance(error, RuntimeError):
                    raise error from None
            raise error
        assert raised.value is error
    assert explain(RuntimeError("unforeseen")) is None


def test_a_plan_that_is_damaged_is_named(tmp_path):
    from common.pruning.plan import Edit, Plan

    plan = Plan("x", (Edit("a", "zero", score=math.nan),), "teacher", scores={"a": math.inf}, tensors={"t": torch.zeros(2)})
    plan.save(tmp_path)
    json.loads((tmp_path / "plan.json").read_text(), parse_constant=refuse_constant)
    assert math.isnan(Plan.load(tmp_path).edits[0].score)
    for name, content in (("plan.json", b"{"), ("plan.json", b"{}"), ("plan.json", b"[]"), ("plan.json", b"\xff")):
        before = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=r"plan\.json is damaged \(.*\); delete .* to plan anew\.$"):
            Plan.load(tmp_path)
        (tmp_path / name).write_bytes(before)


@pytest.mark.parametrize("text", ['{"parts": {', "{}", '{"parts": [], "screen": {}}', '{"parts": {"a": ["x"]}, "screen": {}}'])
def test_a_score_file_that_is_damaged_is_named(tmp_path, text):
    from common.scoring.score_file import ScoreFile

    path = Path(tmp_path, "scores.json")
    path.write_text(text)
    with pytest.raises(InputError, match=r"scores\.json is damaged \(.*\); delete it and the scores are computed anew"):
        ScoreFile.open(path)
