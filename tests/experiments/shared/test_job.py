"""A job by its settings."""

import pytest

from common.errors import InputError
from experiments.shared.job import Job


def test_what_is_wrong_with_other_training_data_is_told_of_its_own_group(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n" * 20)
    words = ["method=laptop_diff", "method.ratio=0.2", f"outputs={tmp_path}"]
    other = Job.compose(*words, "preset=data/teacher_samples", f"task.trained_on.prompts={prompts}")
    with pytest.raises(InputError, match=r"^task\.trained_on\.prompts=.* holds 1 different prompts"):
        _ = other.training_data
    own = Job.compose(*words, "task/data=teacher_samples", f"task.data.prompts={prompts}")
    with pytest.raises(InputError, match=r"^task\.data\.prompts=.* holds 1 different prompts"):
        _ = own.training_data


def test_what_names_the_whole_group_is_told_of_the_other_one():
    for preset, group in (("teacher_samples", "task.trained_on"), ("real", "task.data")):
        job = Job.compose("method=laptop_diff", "method.ratio=0.2", f"preset=data/{preset}")
        with pytest.raises(InputError, match=rf"give {group} of the teacher's size"), job.told_of_training_data():
            raise InputError("give task.data of the teacher's size")
