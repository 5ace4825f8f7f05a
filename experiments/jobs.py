"""Names the folder of a job by what it computes, so that the same command finds its own result again."""

import getpass
import hashlib
import json
import tempfile
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from common.errors import InputError
from common.files import SHIPPED

# what is measured afterwards, and how rows are computed and kept and a network is run, does not change what a job makes; later
# settings at these values do not either: there they are left out, so that a job keeps the name that it had before they came
NOT_PART_OF_A_JOB = (
    "hydra",
    "outputs",
    "device",
    "objectives",
    "wandb",
    "table",
    "metrics",
    "saved_images",
    "dry_run",
    "gpu",
    "utilisation",
    "distill.compile",
    "distill.trainer.strategy",
    "training_rows.rows_per_shard",
    "training_rows.batch_size",
    "training_rows.workers",
    "training_rows.verify",
    "evaluation.micro_batch_size",
)
AS_BEFORE = {
    "training_rows.dtype": "float32",
    "training_rows.flip": False,
    "evaluation.prompts": None,
    "evaluation.scheduler": None,
    "evaluation.seeds": "per_sample",
    "inference_precision": "32",
}


def teacher_content(path: str) -> str:
    """What tells a local teacher's weights from others: names, sizes, first and last megabyte of its files; else ""."""
    folder = next((f for f in (SHIPPED / path, Path(path)) if (f / "model_index.json").is_file()), None)
    if folder is None:
        return ""
    digest = hashlib.sha256()
    for file in sorted((*folder.glob("*/*.safetensors"), *folder.glob("*/*.bin"), *folder.glob("*/*.json"))):
        with open(file, "rb") as handle:
            digest.update(f"{file.relative_to(folder)} {file.stat().st_size}".encode() + handle.read(2**20))
            handle.seek(max(0, file.stat().st_size - 2**20))
            digest.update(handle.read())
    return digest.hexdigest()[:16]


def job_settings(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration without NOT_PART_OF_A_JOB, and without the settings of AS_BEFORE at their values there.

    Batch sizes of scoring and sampling stay in, though they change no more than rounding.
    """
    kept = OmegaConf.to_container(cfg, resolve=False)
    for path in NOT_PART_OF_A_JOB:
        group, name = inner_group(kept, path)
        group.pop(name, None)
    resolved = OmegaConf.to_container(OmegaConf.create(kept), resolve=True)
    resolved.pop("budget", None)  # only what other settings refer to, and so
    resolved.get("distill", {}).pop("recipe", None)
    for path, usual in AS_BEFORE.items():
        group, name = inner_group(resolved, path)
        if name in group and str(group[name]) == str(usual):
            del group[name]
    if not resolved.get("training_rows", True):
        del resolved["training_rows"]
    return resolved


def configuration_of(settings: dict[str, Any]) -> DictConfig:
    """The configuration of a finished job from its row's settings, with what was left out of them at its usual value."""
    cfg = OmegaConf.create(settings)
    for path, usual in AS_BEFORE.items():
        if OmegaConf.select(cfg, path) is None:
            OmegaConf.update(cfg, path, usual)
    return cfg


def inner_group(settings: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """The group that holds the setting at a dotted path (an empty one where it is not there), and its last name."""
    *groups, name = path.split(".")
    return reduce(lambda inner, each: inner.get(each, {}), groups, settings), name


def prompts_content(path: str | None) -> list[str]:
    """What tells a file of prompts from others: a hash of the prompts read from it; nothing where there are none."""
    from common.caption_files import read_prompts

    if path is None:
        return []
    try:
        prompts, _ = read_prompts(Path(path))
    except InputError:  # which is told when the job begins
        return []
    return [hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16]]


def job_folder(cfg: DictConfig) -> str:
    """<task>/<method>/<eight characters of the hash of settings, teacher, prompts and a published student>"""
    parts = [job_settings(cfg), teacher_content(cfg.teacher.path), *prompts_content(cfg.evaluation.prompts)]
    if "path" in cfg.method:  # a student from elsewhere: another one in the same folder is another job
        parts.append(teacher_content(cfg.method.path))
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]
    method = cfg.method._target_.rpartition(".")[0].removesuffix(".method").rpartition(".")[2]
    return f"{cfg.task.name}/{method}/{digest}"


def hydra_folder(cfg: DictConfig) -> str:
    """The job's folder in that of its sweep; a dry run, which writes nothing, has none.

    Of settings that are refused, which the job tells itself, as they were given.
    """
    from experiments.settings import checked

    if cfg.dry_run:
        return "."
    with suppress(InputError):
        cfg = checked(cfg)
    return job_folder(cfg)


def hydra_path(cfg: DictConfig) -> str:
    """The job's folder; of a dry run the one it is started in."""
    return "." if cfg.dry_run else f"{cfg.outputs}/{hydra_folder(cfg)}"


def sweep_path(cfg: DictConfig) -> str:
    """The folder of all jobs; of dry runs a temporary one, for Hydra keeps what a sweep was asked for."""
    return f"{tempfile.gettempdir()}/bonsai_dry_run_{getpass.getuser()}" if cfg.dry_run else cfg.outputs


def register_job_folder() -> None:
    """Makes ${job_folder:}, ${job_path:} and ${sweep_path:} available to the configuration."""
    for name, function in (("job_folder", hydra_folder), ("job_path", hydra_path), ("sweep_path", sweep_path)):
        OmegaConf.register_new_resolver(name, lambda *, _root_, function=function: function(_root_), replace=True)
