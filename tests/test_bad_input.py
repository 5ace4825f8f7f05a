"""Bad settings of run.py are told in one line, before anything is written."""

import pytest

from tests.commands import run
from tests.small_jobs import job

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("method=ld_prune", "ld_pruner"),
        ("task=t2v", "t2i"),
        ("metrics=[nope]", "fid_clean"),
        ("preset=nope", "bk_sdm/small"),
        ("method=null", "Config group override must be a string or a list. Got NoneType"),
        ("method.kk=3", "error: method.kk: there is no such setting"),
        ("method.ratoi=0.3", "error: method.ratoi: there is no such setting; method.ratio is one"),
        ("distil.steps=3", "error: distil.steps: there is no such setting; distill.steps is one"),
        ("method.pattern=2", "error: method.pattern: there is no such setting here; it is one of method=l1_diff (python"),
        ("teacher.path=nobody", "There is no teacher 'nobody'"),
        ("method.k=5000", "k is from 0 to"),
        ("method.k=-1", "method.k=-1: a whole number of at least 0, or null,"),
        ("method.exclude=[nothing.*]", "'nothing.*' matches no operator"),
        ("task.data.folder=/nowhere", "/nowhere has no index.json"),
        ("method.kinds=[]", "leave no operator to remove"),
        ("device=cuda:9", "device='cuda:9' cannot be used here"),
        ("task.data.without=[Nope]", "task.data.without: 'Nope' is none of Activities, "),
        ("distill.features=[nothing]", "'nothing' matches no module of the teacher"),
        ("distill.steps=-1", "distill.steps=-1: a whole number of at least 0"),
        ("evaluation.steps=2000", "evaluation.steps=2000: the teacher's schedule has 1000 timesteps, which is the most."),
        ("method.correction=1 calibration.samples=1", "calibration.samples=1 are too few for method.correction=1"),
    ],
)
def test_bad_input_is_told_in_one_line(tiny_teacher_folder, tmp_path, override, expected):
    done = run(*job("t2i", tiny_teacher_folder, tmp_path), *override.split())
    assert done.returncode != 0
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and expected in lines[0] and done.stderr.strip().endswith(lines[0])
    assert not list(tmp_path.iterdir())


def test_a_bad_value_of_a_sweep_is_told_before_its_first_job(tiny_teacher_folder, tmp_path):
    done = run("run.py", "-m", *job("t2i", tiny_teacher_folder, tmp_path)[1:], "method.k=2,3,half")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: method.k='half': a whole number of at least 0, or null, is needed.\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["additivity", "distance_power", "precompute", "teacher_card", "train_teacher"])
def test_every_command_tells_a_wrong_override_in_one_line(command, tmp_path):
    for override in ("task=t2v", "nothing_of_this_name=1"):
        done = run("-m", f"experiments.{command}", f"hydra.run.dir={tmp_path}", override)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 1
        assert line.startswith("error: ") and override.split("=")[0] in line


def test_a_recipe_without_losses_does_not_train(tiny_teacher_folder, tmp_path):
    own = [f"teacher.path={tiny_teacher_folder}", f"outputs={tmp_path}", "logging=none"]
    done = run("run.py", "method=bk_sdm", "distill=none", "distill.steps=5", *own)
    assert done.returncode == 2 and done.stderr.strip().startswith("error: distill.steps=5: distill=none has no losses")


@pytest.mark.parametrize("multirun", [False, True])
@pytest.mark.parametrize(
    ("outputs", "told"),
    [("{file}", "Not a directory: "), ("{long}", "File name too long: "), ("/sys/bonsai", ": /sys/bonsai")],
)
def test_outputs_that_cannot_be_written_are_told_before_any_work(tmp_path, outputs, told, multirun):
    (tmp_path / "file").touch()
    where = outputs.format(file=tmp_path / "file", long=tmp_path / ("x" * 300))
    done = run("run.py", *(["-m"] if multirun else []), "logging=none", f"outputs={where}")
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and told in line


def test_a_damaged_row_is_told_with_the_remedy(tiny_teacher_folder, tmp_path):
    from hydra import compose, initialize_config_dir

    from common.runtime.files import ROOT
    from experiments.shared.job_id import job_folder, register_job_folder
    from experiments.shared.settings_check import checked

    register_job_folder()
    arguments = job("t2i", tiny_teacher_folder, tmp_path)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        folder = tmp_path / job_folder(checked(compose("config", overrides=arguments[1:])), "ld_pruner")
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{}")
    done = run(*arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {folder}/result.json is damaged (") and line.endswith("; delete it and the job ends anew.")
    assert (folder / "result.json").read_text() == "{}"
