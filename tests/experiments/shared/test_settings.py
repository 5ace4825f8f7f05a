"""Every setting, given a wrong kind, a value out of range, null, NaN or an unknown neighbour, is refused in one line.

The cases are made from the schema: a setting that is added is tested without a line here.
"""

import copy
import dataclasses
import functools
import types
import typing
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt, MinLen
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from common.errors import InputError
from common.settings import arguments_of, checked_call, describe, is_kind, normalize
from experiments.shared.job_id import register_job_folder
from experiments.shared.settings import DistillationSettings, NoDistillationSettings, Settings, TrainerSettings, TrainTeacher
from experiments.shared.settings_check import SettingsCheck, checked, checked_values, resolved, target_of
from tests.commands import run
from tests.test_conf import CONF, compose_config

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
CONFIGURATIONS = {
    **{method: ("config", f"method={method}", "metrics=[fid,clip_score,inception_score]") for method in METHODS},
    "paper": ("config", "scale=paper", "task.data.folder=x", "distill=laptop_diff"),
    "untrained": ("config", "distill=none", "task=uig", "task/data=image_folder"),
    "audio": ("config", "task=uag", "metrics=[fad_vggish]"),
    "captioned": ("config", "task/data=captioned_folder"),
    "hub": ("config", "task/data=hf_dataset"),
    "tar": ("config", "task/data=webdataset"),
    "additivity": ("additivity",),
    "distance power": ("distance_power",),
    **{f"train {task}": ("train_teacher", f"task={task}") for task in ("t2i", "uig", "uag")},
}

SEEN: set[tuple[str, str, str | None]] = set()  # settings that several configurations have
CASES: list[str] = []


def wrong_values(annotation: Any) -> list[Any]:
    """Values that the annotation forbids: another kind, just out of its bounds, null where it has none, NaN for numbers."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        found = wrong_values(arguments[0])
        for bound in arguments[1:]:
            if isinstance(bound, Ge):
                found.append(bound.ge - 1)
            elif isinstance(bound, Gt):
                found.append(bound.gt)
            elif isinstance(bound, Le):
                found.append(bound.le + 1)
            elif isinstance(bound, Lt):
                found.append(bound.lt)
            elif isinstance(bound, MinLen):
                found.append([])
        return found
    if origin in (Union, types.UnionType):
        kinds = [each for each in arguments if each is not type(None)]
        found = wrong_values(kinds[0]) if len(kinds) == 1 else []
        return [value for value in found if value is not None and value != "None"]
    if origin is Literal:
        return ["no such choice", 12345, [], None]
    if is_kind(annotation, dict) or dataclasses.is_dataclass(annotation):
        return ["text", 3, None, []]
    if annotation is not str and is_kind(annotation, typing.Collection):
        inner = next((each for each in arguments if each is not Ellipsis), Any)
        return ["text", 3, None, {"a": 1}, *([value] for value in wrong_values(inner))]
    scalars = {
        int: ["abc", 3.5, True, [1], None, "None", float("nan"), float("inf"), {}],
        float: ["abc", True, [0.5], None, "None", float("nan"), float("-inf"), {}],
        bool: ["yes", 1, 0.0, None, []],
        str: [1.5, True, ["a"], {}, None, "", float("nan")],
    }
    return scalars.get(annotation, [])


def schemas(values: Any, where: str, schema: Any):
    """Place and annotation of every setting below `where`; None for a place where unknown neighbours are refused."""
    yield where, None
    for name, (annotation, _) in arguments_of(schema).items():
        if name not in values:
            continue
        place, value = f"{where}.{name}".lstrip("."), values[name]
        inner = next((each for each in (annotation, *get_args(annotation)) if dataclasses.is_dataclass(each)), None)
        if place == "distill":
            inner = DistillationSettings if "optimizer" in value else NoDistillationSettings
        elif place == "distill.trainer":
            inner = TrainerSettings
        if isinstance(value, dict) and "_target_" in value:
            yield place, annotation
            if not value["_target_"].startswith(("torch.", "diffusers.")):
                yield from schemas(value, place, target_of(value["_target_"], place))
        elif inner is not None and isinstance(value, dict):
            yield from schemas(value, place, inner)
        elif place == "metrics":
            for metric, each in value.items():
                yield from schemas(each, f"metrics.{metric}", target_of(each["_target_"], place))
        elif place != "budget":
            yield place, annotation


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def configuration(request):
    name, *overrides = CONFIGURATIONS[request.param]
    cfg = compose_config(name, *overrides)
    return resolved(cfg)


def refused(cfg: Any, place: str, value: Any) -> str | None:
    """What the check says of `cfg` with another value at a place; None where it takes it."""
    changed = copy.deepcopy(cfg)
    *groups, name = place.split(".")
    functools.reduce(lambda group, each: group[each], groups, changed)[name] = value
    try:
        checked_values(changed)
    except InputError as error:
        return str(error)
    return None


def test_every_wrong_value_of_every_setting_is_refused_in_one_line(configuration):
    good = checked_values(configuration)
    assert checked_values(good) == good  # checked settings are right
    taken = []
    for place, annotation in schemas(configuration, "", TrainTeacher if "teacher_training" in configuration else Settings):
        owner = configuration.get("method", {}).get("_target_") if place.startswith("method") else None
        if (place, str(annotation), owner) in SEEN:
            continue
        SEEN.add((place, str(annotation), owner))
        if annotation is None:
            tries = [(f"{place}.no_such_setting".lstrip("."), 1)]
        else:
            tries = [(place, value) for value in wrong_values(annotation)]
        for where, value in tries:
            told = refused(configuration, where, value)
            CASES.append(where)
            if told is None or "\n" in told or where not in told:
                taken.append((where, value, told))
    assert not taken


def test_there_were_many_cases():
    assert len(CASES) > 1000


@pytest.mark.parametrize(
    ("place", "given", "taken"),
    [
        ("method.k", 3.0, 3),
        ("distill.steps", 1e3, 1000),
        ("method.ratio", "None", None),
        ("distill.ema_decay", "None", None),
        ("evaluation.prompts", 2024, "2024"),
        ("distill.task_weight", 1, 1.0),
        ("distill.output_weight", 0.1 + 0.2, 0.3),
        ("evaluation.more_steps", [5.0], [5]),
    ],
)
def test_values_that_mean_the_same_are_one_setting(place, given, taken):
    cfg = compose_config()
    OmegaConf.update(cfg, place, given)
    found = OmegaConf.select(checked(cfg), place)
    assert (found == taken and type(found) is not float) or isinstance(taken, float)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["distill.task_weight=0", "distill.output_weight=0", "distill.feature_weight=0"], "are all 0"),
        (["distill.features=[]"], "distill.features is empty"),
        (["distill=none", "distill.steps=5"], "distill=none has no losses"),
        (["method.k=3", "method.ratio=0.5"], "exactly one"),
        (["evaluation.scheduler={name: Nope}"], "diffusers has no NopeScheduler"),
        (["+evaluation.scheduler={name: EulerDiscrete, use_karras: true}"], "use_karras: there is no such setting"),
        (["evaluation.scheduler={name: EDMEuler}"], "EDMEulerScheduler is not a class this project can load; known are DDIM"),
        (
            ["evaluation.scheduler={name: FlowMatchEulerDiscrete, invert_sigmas: true}"],
            "invert_sigmas=true, which is not honoured",
        ),
        (["distill.optimizer.lr=-1"], "distill.optimizer: Invalid learning rate"),
        (["distill.optimizer.lr=fast"], "distill.optimizer.lr='fast': a number"),
        (["+distill.optimizer.momentum=0.9"], "distill.optimizer.momentum: there is no such setting"),
        (["distill.compile={mode: fast}"], "distill.compile={'mode': 'fast'}: Unrecognized mode=fast"),
        (["distill.compile={backend: nope}"], "distill.compile={'backend': 'nope'}: Invalid backend: 'nope'"),
        (["distill.compile={options: {nope: 1}}"], "distill.compile={'options': {'nope': 1}}: Unexpected optimization option"),
        (["evaluation.guidance_scale=1e308"], "evaluation.guidance_scale=1e+308: a number of at least 0 and up to 1000"),
        (["distill.compile={mode: default, fast: true}"], "distill.compile.fast: there is no such setting"),
        (["+distill.trainer.gradient_clip=1"], "distill.trainer.gradient_clip: there is no such setting"),
        (["method._target_=nobody.Knows"], "cannot be imported"),
        (["method={_target_: collections.OrderedDict}"], "is not a subclass of common.Method"),
        (["+distill.trainer.max_time=nope"], "distill.trainer={'max_time': 'nope'}: "),
        (["+distill.trainer.max_epochs=3"], "distill.trainer.max_epochs: this argument is not a setting"),
        (["distill.feature_loss=mse"], "distill.feature_loss='mse': a group of settings with a _target_ is needed"),
        (["+metrics.fid=3"], "metrics={'fid': 3}: a group of settings"),
        (["distill.recipe=nope"], "budget.recipes.nope"),
        (["task.data.limit=0"], "task.data.limit=0: a whole number of at least 1"),
        (["+task.data.split=test"], "task.data.split: this argument is not a setting"),
    ],
)
def test_what_does_not_go_together_is_refused(overrides, told):
    with pytest.raises(InputError) as error:
        checked(compose_config("config", *overrides))
    assert told in str(error.value) and "\n" not in str(error.value)


EXPERIMENTS = sorted(path.relative_to(CONF / "experiment").with_suffix("") for path in (CONF / "experiment").rglob("*.yaml"))
SWEEPS = [
    *([f"experiment={path}"] for path in EXPERIMENTS),
    ["method.k=null", "method.ratio=0.02,0.03"],
    ["method=diff_pruning", "method.ratio=null", "method.parameters=0.7,0.8"],
    ["method.ratio=0.1", "method.k=null,3"],
    ["+distill.optimizer.betas=[0.9,0.99],[0.9,0.999]"],
    ["+distill.trainer.gradient_clip_algorithm=norm,value"],
]


def swept(overrides):
    """The configuration of a sweep, as Hydra hands it to its callbacks."""
    register_job_folder()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        return loader.load_configuration("config", overrides, run_mode=RunMode.MULTIRUN)


@pytest.mark.parametrize("overrides", SWEEPS, ids=" ".join)
@pytest.mark.exhaustive
def test_a_sweep_whose_settings_go_together_in_its_jobs_begins(overrides):
    SettingsCheck().on_multirun_start(swept(overrides))


def test_a_wrong_value_of_a_sweep_ends_it(capsys):
    with pytest.raises(SystemExit):
        SettingsCheck().on_multirun_start(swept(["method.k=8,half"]))
    assert capsys.readouterr().err == "error: method.k='half': a whole number of at least 0, or null, is needed.\n"


@pytest.mark.slow
def test_a_command_ends_before_it_writes(tmp_path):
    for override in ("method.k=3.5", "evaluation.images=nan", "distill.ema_decay=2", "+method.kk=3", "evaluation.more_steps=5"):
        done = run("run.py", f"outputs={tmp_path}/outputs", override)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"error: {override.lstrip('+').partition('=')[0]}")
        assert not list(tmp_path.iterdir())


def test_a_description_says_what_is_right():
    assert describe(Annotated[int, Ge(1)] | None) == "a whole number of at least 1, or null"
    assert describe(tuple[Annotated[float, Gt(0), Lt(1)], ...]) == "a list (each a number above 0 and below 1)"
    assert describe(Literal["a", "b"]) == "one of a, b"


def test_missing_arguments_are_told():
    def call(first: int, second: str = "x") -> None: ...

    assert checked_call({"first": 1}, call, "here") == {"first": 1}
    with pytest.raises(InputError, match=r"here\.first is missing: a whole number"):
        checked_call({}, call, "here")
    with pytest.raises(InputError, match=r"a\.b\[0\]=inf: a finite number"):
        normalize({"a": {"b": [float("inf")]}})
