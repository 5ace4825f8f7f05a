"""Prompts apart from images: taken in the file's order, part of what a job and its samples depend on."""

from pathlib import Path

import hydra
import pytest

from common.errors import InputError
from experiments.evaluation.real_features import Reference
from experiments.evaluation.samples import shared_samples
from experiments.shared.job import Job
from experiments.shared.job_id import configuration_of, job_folder, job_settings, register_job_folder
from experiments.shared.prompts import Prompts

CONF = str(Path(__file__).resolve().parents[3] / "conf")


def compose(*overrides):
    register_job_folder()
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        return hydra.compose("config", ["evaluation.images=3", "task.data.limit=4", *overrides], return_hydra_config=True)


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\n\na dog\na bird\n\na fish\n")
    return tmp_path / "prompts.txt"


def test_the_first_prompts_of_the_file_without_names(prompts, capsys):
    assert Job(compose(f"evaluation.prompts={prompts}")).prompts == Prompts(["a cat", "a dog", "a bird"], None)
    assert capsys.readouterr().err == f"{prompts}: 2 empty lines are left out, 4 prompts remain\n"
    found = Job(compose()).prompts
    captions, names = found.captions, found.names
    assert len(captions) == len(names) == 3 and captions[0].startswith(names[0])


def test_empty_prompts_are_told_once_however_many_numbers_of_steps(prompts, capsys):
    job = Job(compose(f"evaluation.prompts={prompts}"))
    assert job.prompts is job.with_evaluation(steps=9).prompts and len(job.with_evaluation(images=2).prompts) == 2
    assert capsys.readouterr().err.count("2 empty lines") == 2  # of two numbers of images


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("evaluation.images=5", r"prompts\.txt has 4 prompts: evaluation.images=5 can be 4 at most"),
        ("task=uig", "task=uig takes no captions; give null"),
        ("evaluation.prompts=/nowhere.txt", "evaluation.prompts: /nowhere.txt cannot be read: it is missing"),
        ("evaluation.prompts=/nowhere.csv", "/nowhere.csv cannot be read: it is missing"),
    ],
)
def test_what_cannot_be_used_is_told(prompts, override, expected):
    with pytest.raises(InputError, match=expected):
        _ = Job(compose(f"evaluation.prompts={prompts}", override)).prompts


@pytest.mark.parametrize("prompts", [100, 40, 12])  # more than samples, and fewer
def test_of_what_the_teacher_drew_prompts_are_those_that_nothing_is_compared_with(tmp_path, prompts):
    """Its samples of the very prompts of the reference would be nearer to that than other samples of it are."""
    (tmp_path / "prompts.txt").write_text("".join(f"thing {number}\n" for number in range(prompts)))
    data = ["task/data=teacher_samples", f"task.data.prompts={tmp_path}/prompts.txt", "task.data.images=60"]
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        cfg = hydra.compose("config", [*data, "evaluation.images=6", f"outputs={tmp_path}"], return_hydra_config=True)
    job = Job(cfg)
    reference = Reference(job, "train")
    compared = [job.data("train").captions[row] for row in reference.order[len(reference.held_back) :].tolist()]
    held = [job.data("train").captions[row] for row in reference.held_back.tolist()]
    wanted = min(6, len(set(job.data("train").captions)) // 2)
    assert len(held) == len(set(held)) == wanted and not set(held) & set(compared) and len(compared) > 20
    assert list(job.prompts.captions) == [held[position % wanted] for position in range(6)]


def test_jobs_and_the_teachers_samples_follow_what_the_file_holds(prompts):
    cfg, without = compose(f"evaluation.prompts={prompts}"), compose()
    before = job_folder(cfg), shared_samples(Job(cfg), "teacher")
    assert before == (job_folder(cfg), shared_samples(Job(cfg), "teacher"))
    assert before[0] != job_folder(without) and before[1] != shared_samples(Job(without), "teacher")
    prompts.write_text("a cat\na dog\na bird\na horse\n")
    assert before[0] != job_folder(cfg) and before[1] != shared_samples(Job(cfg), "teacher")


def test_how_rows_are_kept_does_not_change_a_job():
    same = compose("training_rows.rows_per_shard=9", "training_rows.batch_size=3", "training_rows.workers=2")
    assert job_folder(same) == job_folder(compose()) == job_folder(compose("training_rows.verify=false"))
    assert job_settings(compose())["training_rows"] == {"dtype": "float32", "flip": False}
    assert job_settings(configuration_of(job_settings(compose()), Path("elsewhere"))) == job_settings(compose())
    for override in ("training_rows.flip=true", "training_rows.dtype=float16"):
        assert job_folder(compose(override)) != job_folder(compose())
        name, value = override.removeprefix("training_rows.").split("=")
        assert str(job_settings(compose(override))["training_rows"][name]).lower() == value
