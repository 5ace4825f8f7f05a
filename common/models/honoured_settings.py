"""Which settings of a teacher are honoured, and which refused: one table (honoured_settings.json) for all of its parts.

A part's configuration may hold what the table knows to be honoured, by diffusers' own class ("built") or by this project
("honoured"), what changes no forward pass ("irrelevant"), and what is known at some values alone ("only"). Whatever else it
holds is refused unless it is null or diffusers' default: what a later version adds as well.

    python -m common.models.honoured_settings > docs/teacher_settings.md
"""

import inspect
import json
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.runtime.strict_json import read_json

OF_STUDENTS = ("plan", "auto_map")  # entries that diffusers' own classes ignore
CONFIG_FILES = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json", "mel": "mel_config.json"}


@cache
def table() -> dict[str, dict[str, Any]]:
    """The settings by kind of part: lists of `classes` and `built` entries, dictionaries `honoured`, `irrelevant`, `only`."""
    return json.loads(Path(__file__).with_suffix(".json").read_text())


def class_kind(class_name: str) -> str | None:
    """The part of the table that knows a class."""
    return next((kind for kind, known in table().items() if class_name in known["classes"]), None)


def entries(group: dict[str, Any]) -> set[str]:
    """The single names in the keys of a group of the table."""
    return {name for names in group for name in names.split(", ")}


def class_defaults(class_name: str) -> dict[str, Any]:
    """What diffusers takes for the entries that a configuration of this class leaves out; {} for a class of transformers."""
    import diffusers

    from common.pruning import pruned_denoiser

    found = getattr(diffusers, class_name, None) or getattr(pruned_denoiser, class_name, None)
    if found is None:
        return {}
    parameters = list(inspect.signature(found.__init__).parameters.values())[1:]
    return {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}


def plain(value: Any) -> Any:
    """A value as JSON holds it: tuples are lists."""
    return [plain(each) for each in value] if isinstance(value, tuple | list) else value


def shown(value: Any) -> str:
    """A value in a message, as JSON, not too long."""
    text = json.dumps(plain(value), default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_settings(where: str, class_name: str, settings: dict[str, Any]) -> None:
    """InputError naming the first entry of a part's configuration that is not honoured; `where` tells whose it is.

    Entries whose names begin with an underscore are diffusers' notes.
    """
    kind = class_kind(class_name)
    if kind is None:
        raise InputError(f"{where}: {class_name} is not a class this project can load; {known_classes(class_name)}")
    known = table()[kind]
    free = {*known["built"], *entries(known["honoured"]), *entries(known["irrelevant"])} - set(known["only"])
    defaults = class_defaults(class_name)
    for name, value in settings.items():
        if name.startswith("_"):
            continue
        check_kind(where, name, value, defaults.get(name))
        if name in OF_STUDENTS and value is not None and not class_name.startswith("Pruned"):
            raise InputError(
                f"{where} sets {name}, which a {class_name} does not read: its class is one of Pruned{class_name}."
            )
        if name in free or (known.get("any") and name not in known["only"]):
            continue
        values, why = known["only"].get(name, (None, None))
        if values is None:
            usual = name in defaults and plain(defaults[name]) == plain(value)
            if value is not None and not usual:
                raise InputError(
                    f"{where} sets {name}={shown(value)}, which this project does not know (docs/teacher_settings.md); if the "
                    "model does without it, take the entry out."
                )
        elif value not in values:
            wanted = " or ".join(map(shown, values))
            raise InputError(f"{where} sets {name}={shown(value)}, which is not honoured ({why}): {wanted} is.")


def check_kind(where: str, name: str, value: Any, usual: Any) -> None:
    """InputError for numbers that are not finite, negative epsilons, and text or a truth value in the place of `usual`."""
    if isinstance(value, float) and not math.isfinite(value) and value != usual:  # lambda_min_clipped of DPM-Solver is -inf
        raise InputError(f"{where} sets {name}={value}: a finite number is needed.")
    if name.endswith("_eps") and isinstance(value, int | float) and value < 0:
        raise InputError(f"{where} sets {name}={value}: a number of at least 0 is needed.")
    numbers = isinstance(usual, int | float) and not isinstance(usual, bool)
    if (numbers and isinstance(value, str | bool)) or (isinstance(usual, bool) and isinstance(value, str)):
        raise InputError(f"{where} sets {name}={shown(value)}, which is no {'number' if numbers else 'true or false'}.")


def known_classes(class_name: str) -> str:
    """The classes of the kind that an unknown one seems to be of."""
    endings = {"Scheduler": "schedulers", "Pipeline": "model_index.json", "UNet2DConditionModel": "UNet2DConditionModel"}
    kind = next((kind for ending, kind in endings.items() if class_name.endswith(ending)), None)
    kinds = [kind] if kind else [each for each in table() if each not in endings.values()]
    classes = [name for each in kinds for name in table()[each]["classes"]]
    return f"known are {', '.join(classes)}."


def check_pipeline_settings(folder: Path, index: dict[str, Any]) -> None:
    """check_settings of model_index.json and of every part that it names and that lies in `folder`.

    InputError for a pipeline of an unknown class, and for a part that no job knows.
    """
    where = folder / "model_index.json"
    if "_class_name" in index:
        check_settings(str(where), str(index["_class_name"]), {})
    known = table()["model_index.json"]
    check_settings(
        str(where), "DiffusionPipeline", {name: value for name, value in index.items() if not isinstance(value, list)}
    )
    for name, (_, class_name) in named_parts(index).items():
        if name not in entries(known["honoured"]) | entries(known["irrelevant"]):
            raise InputError(f"{where} names a part {name!r} ({class_name}), which no job honours (docs/teacher_settings.md).")
        path = config_file(folder, name)
        if name not in known["irrelevant"] and path.is_file():
            check_settings(str(path), class_name, read_json(path))


def named_parts(index: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Library and class of each part that a model_index.json names; what is null, or none of its pairs, is left out."""
    pairs = {name: value for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    return {name: tuple(pair) for name, pair in pairs.items() if pair[0] and not name.startswith("_")}


def config_file(folder: Path, name: str) -> Path:
    """The configuration of the part `name` of a pipeline folder."""
    return folder / name / CONFIG_FILES.get(re.sub(r"_\d$", "", name), "config.json")


def page() -> str:
    """The table as a page of the documentation, by honoured_settings.md."""
    from jinja2 import Environment

    environment = Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    template = environment.from_string(Path(__file__).with_suffix(".md").read_text(encoding="utf-8"))
    return template.render(table=table(), shown=shown)


if __name__ == "__main__":
    print(page(), end="")
