"""Names the folder of a job by what it computes, so that the same command finds its own result again."""

import getpass
import shlex
import tempfile
from contextlib import suppress
from functools import reduce
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from common.errors import InputError
from common.runtime.content import content_name, path_content
from common.runtime.files import ROOT
from experiments.shared.identity import data_identity, identified, pipeline_identity

# what is measured afterwards, and how rows are computed and kept and a network is run, does not change what a job makes
NOT_PART_OF_A_JOB = (
    "hydra",
    "outputs",
    "device",
    "objectives",
    "wandb",
    "table",
    "metrics",
    "saved_images",
    "deployment",
    "layer_check",
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


def job_settings(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration without NOT_PART_OF_A_JOB: what a row holds of it.

    Batch sizes of scoring and sampling stay in, though they change no more than rounding.
    """
    kept = OmegaConf.to_container(cfg, resolve=False)
    for path in NOT_PART_OF_A_JOB:
        *groups, name = path.split(".")
        reduce(lambda inner, each: inner.get(each, {}), groups, kept).pop(name, None)
    resolved = OmegaConf.to_container(OmegaConf.create(kept), resolve=True)
    resolved.pop("budget", None)  # only what other settings refer to, and so
    resolved.get("distill", {}).pop("recipe", None)
    return resolved


def configuration_of(settings: dict[str, Any], outputs: Path) -> DictConfig:
    """The configuration of a finished job from its row's settings, and from where its outputs lie now."""
    return OmegaConf.create({**settings, "outputs": str(outputs)})


def chosen(cfg: DictConfig, group: str) -> str:
    """The option that was chosen of a group, such as "ld_pruner" of "method".

    Hydra tells it where `cfg` is inside of Hydra's own configuration (as in a resolver, and from compose with
    return_hydra_config=True), and in a job.
    """
    runtime = cfg.hydra.runtime if "hydra" in cfg else HydraConfig.get().runtime
    return runtime.choices[group]


def command_of(hydra_config: Any) -> str:
    """The command that runs a job again, alone."""
    where = [word for word in hydra_config.overrides.hydra if word.startswith("hydra.searchpath=")]
    return shlex.join(["python", "run.py", *where, *hydra_config.overrides.task])


def job_identity(settings: dict[str, Any], outputs: str, method: str) -> dict[str, Any]:
    """What a job's name is made of (experiments/shared/identity.py): no two jobs that can differ have the same.

    settings: those of job_settings. method: the option that was chosen of this group.
    """
    made_of = identified({name: value for name, value in settings.items() if name not in ("teacher", "task")})
    made_of["task"] = identified({**settings["task"], "data": None}) | {
        "data": data_identity(settings["task"]["data"], outputs)
    }
    for part in ("teacher", "method"):
        if "path" in settings[part]:
            others = {name: value for name, value in settings[part].items() if name not in ("path", "revision")}
            weights = pipeline_identity(settings[part]["path"], settings[part].get("revision"))
            made_of[part] = identified(others) | {"weights": weights}
    code = outside_code(settings["method"].get("_target_", ""))
    return made_of | {"choices": {"method": method}} | ({"code": code} if code else {})


def outside_code(target: str) -> str:
    """The content of the file that holds a method from outside of the project; "" for one of its own.

    Whoever writes a method changes its code between jobs.
    """
    try:
        found = find_spec(target.rpartition(".")[0])
    except (ImportError, ValueError, AttributeError):
        return ""
    origin = None if found is None or found.origin is None else Path(found.origin)
    return "" if origin is None or not origin.is_file() or origin.is_relative_to(ROOT) else path_content(origin)


def job_folder(cfg: DictConfig, method: str | None = None) -> str:
    """The folder of a job below its outputs.

    method: the option that was chosen of this group, where Hydra cannot tell it of `cfg`.
    """
    return job_name(job_settings(cfg), cfg.outputs, method or chosen(cfg, "method"))


def job_name(settings: dict[str, Any], outputs: str, method: str) -> str:
    """<task>/<method>/<eight characters of the hash of job_identity>"""
    identity = content_name(job_identity(settings, outputs, method))
    return f"{settings['task']['name']}/{method.rpartition('/')[2]}/{identity[:8]}"


def check_unchanged(settings: dict[str, Any], outputs: str, method: str, folder: Path) -> None:
    """InputError when the weights or data that the job in `folder` reads are others now than when it was named for them."""
    now = Path(outputs, job_name(settings, outputs, method))
    if folder.parent.resolve() == now.parent.resolve() and folder.name != now.name:
        raise InputError(f"The weights or data of {folder} have changed since this command began; run it again.")


def hydra_folder(cfg: DictConfig) -> str:
    """The job's folder in that of its sweep; a dry run, which writes nothing, has none.

    Of settings that are refused, which the job tells itself, as they were given.
    """
    from experiments.shared.settings_check import checked

    if cfg.dry_run:
        return "."
    method = chosen(cfg, "method")
    with suppress(InputError):
        cfg = checked(cfg)
    return job_folder(cfg, method)


def hydra_path(cfg: DictConfig) -> str:
    """The job's folder; of a dry run the one it is started in."""
    return "." if cfg.dry_run else f"{cfg.outputs}/{hydra_folder(cfg)}"


def sweep_path(cfg: DictConfig) -> str:
    """The folder of all jobs; of dry runs a temporary one, for Hydra keeps what a sweep was asked for."""
    return f"{tempfile.gettempdir()}/bonsai_dry_run_{getpass.getuser()}" if cfg.dry_run else cfg.outputs


def sound_of(cfg: DictConfig) -> dict[str, Any]:
    """What an audio teacher's images stand for (experiments.shared.teacher_sound)."""
    from experiments.shared.teacher_sound import teacher_sound

    return teacher_sound(cfg)


def register_job_folder() -> None:
    """Makes ${job_folder:}, ${job_path:}, ${sweep_path:} and ${teacher_sound:} available to the configuration."""
    folders = {"job_folder": hydra_folder, "job_path": hydra_path, "sweep_path": sweep_path}
    for name, function in {**folders, "teacher_sound": sound_of}.items():
        OmegaConf.register_new_resolver(name, lambda *, _root_, function=function: function(_root_), replace=True)
