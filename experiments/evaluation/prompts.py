"""The captions of the samples that a job is measured by."""

import sys
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig

from common.errors import InputError
from common.runtime.seeding import generator_for
from common.shown_text import spelt_out


def evaluation_prompts(cfg: DictConfig) -> tuple[list[str], list[str] | None]:
    """Captions and names of the images to sample: a seeded draw without repetition while there are enough.

    With evaluation.prompts the first of that file, which have no names. Without captions in the data set: empty ones, and no
    names.
    """
    data = hydra.utils.instantiate(cfg.task.data, split=cfg.evaluation.split)
    count = cfg.evaluation.images
    if cfg.evaluation.prompts is not None:
        return prompts_of_file(cfg, hasattr(data, "captions")), None
    if not hasattr(data, "captions"):
        return [""] * count, None
    order = torch.randperm(len(data), generator=generator_for(cfg.evaluation.seed, 1)).tolist()
    chosen = [order[position % len(order)] for position in range(count)]
    return [data.captions[i] for i in chosen], None if data.names is None else [data.names[i] for i in chosen]


def prompts_of_file(cfg: DictConfig, captioned: bool) -> list[str]:
    """The first evaluation.images prompts of evaluation.prompts; InputError when it has fewer or the task takes none."""
    from common.data.captions import read_prompts

    path, count = cfg.evaluation.prompts, cfg.evaluation.images
    if not captioned:
        raise InputError(f"evaluation.prompts={path}: task={cfg.task.name} takes no captions; give null.")
    prompts, empty = read_prompts(Path(path))
    if empty:
        print(spelt_out(f"{path}: {empty} empty lines are left out, {len(prompts)} prompts remain"), file=sys.stderr)
    if len(prompts) < count:
        raise InputError(f"{path} has {len(prompts)} prompts: evaluation.images={count} can be {len(prompts)} at most.")
    return prompts[:count]
