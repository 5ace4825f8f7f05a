"""The check of a configuration before any work: kinds, ranges and choices of every setting, and what goes together.

The schema is in settings.py, and in the signature of whatever a `_target_` names.
"""

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from textwrap import shorten
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from common.errors import InputError, first_line
from common.models.honoured_settings import check_settings
from common.settings import (
    checked_call,
    joined,
    normalize,
)
from experiments.shared.command_line import ending
from experiments.shared.settings import LOSSES, TrainerSettings, schema_of

DECIDED = (  # arguments of lightning.Trainer that other settings, or the project, decide
    *("accumulate_grad_batches", "callbacks", "default_root_dir", "enable_checkpointing", "enable_model_summary"),
    *("enable_progress_bar", "fast_dev_run", "limit_train_batches", "logger", "max_epochs", "max_steps", "min_epochs"),
    *("min_steps", "overfit_batches", "plugins", "use_distributed_sampler"),
)
GIVEN = dict.fromkeys(("task.data", "task.trained_on", "teacher_training.data"), ("split",))  # the code adds it to a `_target_`


def checked(cfg: DictConfig) -> DictConfig:
    """`cfg` resolved, with every value as its schema wants it; Hydra's own part is left out.

    InputError in one line for the first setting that is unknown, missing, of a wrong kind or out of range, and for settings
    that do not go together. Nothing is loaded or written.
    """
    found = OmegaConf.create(checked_values(resolved(cfg)))
    OmegaConf.set_struct(found, True)
    return found


def checked_values(values: dict[str, Any]) -> dict[str, Any]:
    """As `checked`, of plain values without references."""
    values = checked_fields(values)
    if "distill" in values:
        check_together(values)
    return values


def checked_fields(values: dict[str, Any]) -> dict[str, Any]:
    """Each setting by itself: those of a sweep may only go together as its jobs have them."""
    values = normalize(values)
    values = checked_call(values, schema_of(values), "")
    return {name: value if name == "budget" else with_checked_targets(value, name) for name, value in values.items()}


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The values of `cfg` without Hydra's own; InputError for a reference to a setting that is not there."""
    own = OmegaConf.masked_copy(cfg, [name for name in cfg if name != "hydra"])
    own._set_parent(None)
    try:
        values = OmegaConf.to_container(own, resolve=True)
    except OmegaConfBaseException as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:  # what a resolver has said
            raise cause from error
        raise InputError(f"{getattr(error, 'full_key', None) or 'settings'}: {first_line(error)}.") from error
    return values


def put_back(cfg: DictConfig, values: DictConfig) -> None:
    """Gives `cfg` the checked values in place of its own."""
    with read_write(cfg), open_dict(cfg):
        for name, value in values.items():
            cfg[name] = value


class SettingsCheck(Callback):
    """Checks the settings before Hydra makes a folder, and gives the job the checked ones; of a sweep each value by itself."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        with ending(2):
            put_back(config, checked(config))

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        with ending(2):
            checked_fields(resolved(config))
            for place, value in swept_values(config):
                changed = copy.deepcopy(config)
                with read_write(changed), open_dict(changed):
                    OmegaConf.update(changed, place, value, force_add=True)
                checked_fields(resolved(changed))


def sweep_overrides(config: DictConfig) -> list[Any] | None:
    """What Hydra's own sweeper goes over, of the command line and of the configuration; None where another one decides."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if not config.hydra.sweeper._target_.endswith("BasicSweeper"):
        return None
    given = [*config.hydra.overrides.task]
    names = {word.partition("=")[0] for word in given}
    params = (config.hydra.sweeper.params or {}).items()
    asked = [*given, *(f"{name}={value}" for name, value in params if name not in names)]
    return [each for each in OverridesParser.create().parse_overrides(asked) if each.is_sweep_override()]


def swept_values(config: DictConfig) -> Iterator[tuple[str, Any]]:
    """Place and value of what Hydra's own sweeper goes over; nothing where whole groups are swept, whose values differ."""
    from hydra.core.override_parser.types import QuotedString

    swept = sweep_overrides(config) or []
    if not any(each.key_or_group in config.hydra.runtime.choices for each in swept):
        for each in swept:
            for value in each.sweep_iterator():
                yield each.key_or_group, value.text if isinstance(value, QuotedString) else value


def with_checked_targets(value: Any, where: str) -> Any:
    """A group of settings in which everything that Hydra will instantiate is checked by the signature of what it names."""
    if isinstance(value, list):
        return [with_checked_targets(each, f"{where}[{number}]") for number, each in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    value = {name: with_checked_targets(each, joined(where, str(name))) for name, each in value.items()}
    if "_target_" not in value:
        return value
    return checked_call(value, target_of(value["_target_"], where), where, GIVEN.get(where, ()))


def target_of(name: str, where: str) -> Callable[..., Any]:
    """What `_target_` names; InputError where there is none."""
    from hydra.utils import get_object

    log = logging.getLogger("hydra.utils")
    log.disabled = True  # it would tell the same in several lines
    try:
        return get_object(name)
    except Exception as error:  # whatever importing a person's own module raises
        reason = error
        while reason.__cause__ is not None and isinstance(reason, ImportError):
            reason = reason.__cause__
        told = first_line(reason).rstrip(".")
        if isinstance(reason, ModuleNotFoundError):
            told += "; a folder outside of the project goes into PYTHONPATH"
        raise InputError(f"{where}._target_={name!r} cannot be imported: {told}.") from error
    finally:
        log.disabled = False


def check_together(values: Mapping[str, Any]) -> None:
    """InputError for what depends on several settings, or on the library that takes them."""
    distill = values["distill"]
    if "optimizer" not in distill:
        if distill["steps"] or distill["autoencoder"]["steps"]:
            raise InputError(
                f"distill.steps={distill['steps']}: distill=none has no losses to train with; choose a recipe, or no steps."
            )
    else:
        if distill["steps"] and not any(distill[f"{kind}_weight"] for kind in LOSSES):
            named = ", ".join(f"{kind}_weight" for kind in LOSSES)
            raise InputError(f"distill.{named} are all 0: one must be above 0 to train.")
        if distill["feature_weight"] and distill["steps"] and distill["features"] is not None and not distill["features"]:
            raise InputError("distill.features is empty: name some, or set distill.feature_weight=0.")
        with_teacher = any(distill[f"{kind}_weight"] for kind in LOSSES if kind != "task")
        if distill["random_conditioning"] and distill["steps"] and not with_teacher:
            raise InputError(
                f"distill.random_conditioning={distill['random_conditioning']}: what another prompt makes of latents the "
                "teacher alone says; give distill.output_weight, feature_weight or local_weight."
            )
        check_trainer(distill["trainer"])
        if distill["compile"] is not None:
            check_compile(distill["compile"])
        for where, settings in (("distill", distill), ("distill.autoencoder", distill["autoencoder"])):
            check_optimizer(settings["optimizer"], f"{where}.optimizer")
    check_scheduler(values["evaluation"]["scheduler"])
    check_method(values["method"])


def check_method(settings: Mapping[str, Any]) -> None:
    """Makes the method, which checks what goes together itself; InputError as well for what is no method."""
    from common.pruning.method import Method

    if not isinstance(made(settings, "method"), Method):
        raise InputError(
            f"method._target_={settings['_target_']} is not a subclass of common.Method (docs/adding_a_method.md)."
        )


def check_trainer(settings: Mapping[str, Any]) -> None:
    """Those of Trainer by its fields; further ones by lightning.Trainer, which is made of them once."""
    names = {field.name for field in fields(TrainerSettings)}
    checked_call({name: value for name, value in settings.items() if name in names}, TrainerSettings, "distill.trainer")
    further = {name: value for name, value in settings.items() if name not in names}
    if not further:
        return
    from lightning import Trainer as LightningTrainer

    checked_call(further, LightningTrainer, "distill.trainer", given=DECIDED)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    without = {name: value for name, value in further.items() if name not in ("accelerator", "devices", "num_nodes")}
    try:
        LightningTrainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, **without)
    except Exception as error:  # each argument refuses in its own way
        raise InputError(f"distill.trainer={without}: {first_line(error)}.") from error


def check_compile(settings: Mapping[str, Any]) -> None:
    """Compiles nothing yet: torch.compile refuses itself what it cannot work with."""
    import torch

    checked_call(settings, torch.compile, "distill.compile", given=("model",))
    try:
        torch.compile(torch.nn.Identity(), **settings)
    except Exception as error:  # of many kinds
        raise InputError(f"distill.compile={dict(settings)}: {shorten(first_line(error), 200)}") from error


def check_optimizer(settings: Mapping[str, Any], where: str) -> None:
    """Makes the optimiser of one parameter: it refuses itself what it cannot work with."""
    import torch

    try:
        made(settings, where)([torch.nn.Parameter(torch.zeros(1))])
    except Exception as error:
        raise InputError(f"{where}: {first_line(error)}.") from error


def made(settings: Mapping[str, Any], where: str) -> Any:
    """What Hydra makes of a `_target_`; InputError where that refuses its settings."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(settings, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__ or error
        raise cause if isinstance(cause, InputError) else InputError(f"{where}: {first_line(cause)}.") from error


def check_scheduler(settings: Mapping[str, Any] | None) -> None:
    """evaluation.scheduler by the signature of the diffusers class that it names, and by what a teacher's own may be."""
    if settings is None:
        return
    import diffusers

    name = settings.get("name")
    kind = getattr(diffusers, f"{name}Scheduler", None)
    if not isinstance(name, str) or kind is None:
        raise InputError(f"evaluation.scheduler.name={name}: diffusers has no {name}Scheduler; it has PNDM and DDIM, say.")
    given = {each: value for each, value in settings.items() if each != "name"}
    checked_call(given, kind, "evaluation.scheduler")
    check_settings("evaluation.scheduler", kind.__name__, given)
