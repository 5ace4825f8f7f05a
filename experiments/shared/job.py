"""A job: its settings, and what they describe, each made once and when it is first asked for."""

import copy
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig

from common.data.teacher_samples import TeacherSamples
from common.errors import InputError
from common.models.latent_diffusion import LatentDiffusion
from common.models.loading import load_teacher
from common.pruning.method import Method
from common.runtime.files import ROOT
from common.runtime.processes import pick_device
from common.runtime.progress import under_way
from experiments.shared.identity import TARGET, data_identity, identified
from experiments.shared.job_id import chosen, job_folder, job_settings, register_job_folder
from experiments.shared.out_of_memory import memory_advice
from experiments.shared.prompts import Prompts, evaluation_prompts
from experiments.shared.settings import Settings, typed_settings
from experiments.shared.settings_check import checked

PROMPTED_BY = {"prompts", "images", "split", "seed"}  # settings of evaluation by which the prompts are chosen


class Job:
    """An experiment as it is configured: settings, folders, device, data, prompts, teacher and method.

    settings: the configuration, typed. described: what a result row holds of it. folder: where the job writes its own. cache:
    where what all jobs of these outputs share is kept. teacher_fingerprint: the teacher's, of a finished job whose teacher need
    not be there. seconds: what each of its stages took so far.
    """

    def __init__(self, cfg: DictConfig, folder: str | Path = ".", teacher_fingerprint: str | None = None):
        self.settings: Settings = typed_settings(cfg)
        self.described = job_settings(cfg)
        self.folder = Path(folder)
        self.cache = Path(self.settings.outputs) / "cache"
        self.seconds: dict[str, float] = {}
        self._teacher_fingerprint = teacher_fingerprint
        self._data: dict[str, Any] = {}

    @classmethod
    def compose(cls, *overrides: str) -> "Job":
        """The job that `python run.py <overrides>` would be, in the same folder.

        InputError in one line, or Hydra's error, for settings that cannot be composed or that do not pass the check.
        """
        register_job_folder()
        with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            cfg = hydra.compose("config", overrides=[*overrides], return_hydra_config=True)
        method = chosen(cfg, "method")
        cfg = checked(cfg)
        return cls(cfg, Path(cfg.outputs, job_folder(cfg, method)))

    def data(self, split: str) -> Any:
        """The data set of a split, "train" or "test": `images`, and where it has them `captions` and `names`."""
        if split not in self._data:
            self._data[split] = self._made(self.settings.task.data, split)
        return self._data[split]

    @cached_property
    def training_data(self) -> Any:
        """What the student is trained on: task.trained_on, or else the training images of the data."""
        other = self.settings.task.trained_on
        if other is None:
            return self.data("train")
        with self.told_of_training_data():
            return self._made(other, "train")

    @contextmanager
    def told_of_training_data(self) -> Iterator[None]:
        """InputErrors inside that name task.data name task.trained_on where that is what the student is trained on."""
        try:
            yield
        except InputError as error:
            if self.settings.task.trained_on is None:
                raise
            told = re.sub(r"\btask\.data\b", "task.trained_on", str(error))
            raise InputError(told.replace("task/data=", "task/data@task.trained_on=")) from error

    def _made(self, settings: dict[str, Any], split: str) -> Any:
        found = hydra.utils.instantiate(settings, split=split)
        if isinstance(found, TeacherSamples):
            channels = 3 if self.sound is None else 1
            return found.drawn_by(self.teacher, self.cache, channels, self.autocast, self.precision_suffix)
        return found

    @property
    def evaluation_data(self) -> Any:
        """The real images that samples are compared with, whose captions are the prompts."""
        return self.data(self.settings.evaluation.split)

    @cached_property
    def data_identity(self) -> dict[str, Any]:
        """What tells the data from others, of both splits."""
        return self._identity_of(self.settings.task.data)

    @property
    def training_data_identity(self) -> dict[str, Any]:
        """What tells training_data from others."""
        other = self.settings.task.trained_on
        return self.data_identity if other is None else self._identity_of(other)

    def _identity_of(self, data: dict[str, Any]) -> dict[str, Any]:
        found = data_identity(data, self.settings.outputs)
        if found[TARGET] == TeacherSamples.__name__:
            found |= {
                "teacher": self._teacher_fingerprint or self.teacher.fingerprint(),
                "precision": self.settings.inference_precision,
            }
        return found

    @cached_property
    def features_identity(self) -> Any:
        """What tells the extractor of features from others."""
        return identified(self.settings.task.features)

    @cached_property
    def prompts(self) -> Prompts:
        """Of the samples to measure."""
        data = hydra.utils.instantiate(self.settings.task.data, split=self.settings.evaluation.split)
        return evaluation_prompts(self.settings, data if isinstance(data, TeacherSamples) else self.evaluation_data)

    @cached_property
    def device(self) -> torch.device:
        return pick_device(self.settings.device)

    @cached_property
    def teacher(self) -> LatentDiffusion:
        """On the job's device."""
        teacher = self.settings.teacher
        loaded = load_teacher(teacher.path, teacher.revision, teacher.config, teacher.vae, teacher.lora, teacher.lora_scale)
        return loaded.to(self.device)

    @cached_property
    def method(self) -> Method:
        return hydra.utils.instantiate(self.settings.method, _convert_="all")

    @cached_property
    def sound(self) -> Any:
        """What the images of an audio task stand for; None of other tasks."""
        return None if self.settings.task.sound is None else hydra.utils.instantiate(self.settings.task.sound)

    def extractor(self) -> Any:
        """The network whose features are compared, on the job's device."""
        return hydra.utils.instantiate(self.settings.task.features).to(self.device)

    def autocast(self) -> AbstractContextManager[Any]:
        """Matrix products and convolutions inside run in inference_precision, from weights in float32 (torch.autocast).

        float32 or bfloat16; not float16: gradients that are scored would vanish without a scaled loss. Training has a precision
        of its own (distill.trainer.precision).
        """
        if self.settings.inference_precision != "bf16":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)  # copies would be kept until the end

    @property
    def precision_suffix(self) -> str:
        """Sets the files of what was computed in another precision than float32 apart."""
        return "-bf16" if self.settings.inference_precision == "bf16" else ""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A stage of the job: its time is added to seconds[name], and a log says that it begins and ends.

        InputError with advice where memory does not suffice.
        """
        started = time.perf_counter()
        with memory_advice(name, self.settings), under_way(f"stage: {name}"):
            yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - started, 1)

    def with_evaluation(self, **changes: Any) -> "Job":
        """The same job under another protocol: with_evaluation(steps=10). What else has been made is shared."""
        settings = replace(self.settings, evaluation=replace(self.settings.evaluation, **changes))
        return self._changed(settings, *(["prompts"] if PROMPTED_BY.intersection(changes) else []))

    def with_data(self, **changes: Any) -> "Job":
        """The same job on other data: further arguments of its loader."""
        task = replace(self.settings.task, data=self.settings.task.data | changes)
        other = self._changed(replace(self.settings, task=task), "prompts", "data_identity", "training_data")
        other._data = {}
        return other

    def _changed(self, settings: Settings, *stale: str) -> "Job":
        other = copy.copy(self)
        other.settings = settings
        for name in stale:
            other.__dict__.pop(name, None)
        return other
