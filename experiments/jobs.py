"""Names the folder of a job by what it computes, so that the same command finds its own result again."""

import hashlib
import json
from typing import Any

from omegaconf import DictConfig, OmegaConf

NOT_PART_OF_A_JOB = ("hydra", "outputs", "device")


def job_settings(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration without what does not change the result."""
    settings = OmegaConf.to_container(cfg, resolve=False)
    kept = {name: value for name, value in settings.items() if name not in NOT_PART_OF_A_JOB}
    return OmegaConf.to_container(OmegaConf.create(kept), resolve=True)


def job_folder(cfg: DictConfig) -> str:
    """<task>/<method>/<eight characters of the settings' hash>"""
    digest = hashlib.sha256(json.dumps(job_settings(cfg), sort_keys=True).encode()).hexdigest()[:8]
    method = cfg.method._target_.rpartition(".")[0].removesuffix(".method").replace(".", "_")
    return f"{cfg.task.name}/{method}/{digest}"


def register_job_folder() -> None:
    """Makes ${job_folder:} available to the configuration."""
    OmegaConf.register_new_resolver("job_folder", lambda *, _root_: job_folder(_root_), replace=True)
