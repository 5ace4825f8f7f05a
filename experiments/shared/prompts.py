"""The captions of the samples that a job is measured by."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.data.captions import read_prompts
from common.data.teacher_samples import TeacherSamples, rows_apart
from common.errors import InputError
from common.runtime.seeding import generator_for
from common.shown_text import spelt_out
from experiments.shared.settings import Settings


@dataclass(frozen=True)
class Prompts:
    """captions: one a sample, "" without text. names: what each caption shows, by the data set's own names; None without."""

    captions: list[str]
    names: list[str] | None = None

    @property
    def captioned(self) -> bool:
        return any(self.captions)

    def __len__(self) -> int:
        return len(self.captions)


def evaluation_prompts(settings: Settings, data: Any) -> Prompts:
    """A seeded draw of the captions of `data`, without repetition while there are enough.

    With evaluation.prompts the first of that file, which have no names. Without captions in the data set: empty ones.
    """
    evaluation = settings.evaluation
    if evaluation.prompts is not None:
        return Prompts(prompts_of_file(settings, hasattr(data, "captions")))
    if not hasattr(data, "captions"):
        return Prompts([""] * evaluation.images)
    if isinstance(data, TeacherSamples):
        # those whose samples are held back (experiments.evaluation.real_features.Reference): the teacher would be nearer to
        # samples of the very prompts that it is given than samples of other prompts are
        order, others = rows_apart(data.captions, len(data), evaluation.images, generator_for(evaluation.seed, 2))
        order = order or others
    else:
        order = torch.randperm(len(data), generator=generator_for(evaluation.seed, 1)).tolist()
    chosen = [order[position % len(order)] for position in range(evaluation.images)]
    names = None if data.names is None else [data.names[i] for i in chosen]
    return Prompts([data.captions[i] for i in chosen], names)


def prompts_of_file(settings: Settings, captioned: bool) -> list[str]:
    """The first evaluation.images prompts of evaluation.prompts; InputError when it has fewer or the task takes none."""
    path, count = settings.evaluation.prompts, settings.evaluation.images
    if not captioned:
        raise InputError(f"evaluation.prompts={path}: task={settings.task.name} takes no captions; give null.")
    prompts, empty = read_prompts(Path(str(path)))
    if empty:
        print(spelt_out(f"{path}: {empty} empty lines are left out, {len(prompts)} prompts remain"), file=sys.stderr)
    if len(prompts) < count:
        raise InputError(f"{path} has {len(prompts)} prompts: evaluation.images={count} can be {len(prompts)} at most.")
    return prompts[:count]
