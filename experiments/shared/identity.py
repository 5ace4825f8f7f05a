"""What a job, and what jobs share, is made of: the options that were chosen, values, and the content of weights and data.

A file or folder counts by what it holds and not by where it lies: the same teacher under two paths is the same one, another
one in its place is another. A repository of a hub counts by its commit, so that it is known before anything is downloaded. A
class or function counts by its own name and not by its module, and a number by its value.

LatentDiffusion.fingerprint() is computed of what has been loaded, and names what was computed with it (scores, latents,
samples); here nothing is loaded, and all files of a teacher count, whether they will be read or not. So jobs may differ whose
teachers have one fingerprint (the same weights in another format), and never the other way round.
"""

from pathlib import Path
from typing import Any

from common.models.hub import commit_of, is_repository
from common.runtime.content import NOTES, PATHS, located, path_content
from common.runtime.files import SHIPPED
from common.settings import DIGITS

TARGET = "_target_"  # Hydra's name of what a group of settings is for: a class or a function, with its module
SHOWN = (*NOTES, ".png", ".jpg", ".jpeg", ".webp", ".gif", ".svg", ".wav", ".flac", ".mp3")  # beside a teacher's weights
UNORDERED = {"parts", "kinds", "modules", "exclude", "autoencoder_exclude", "without", "more_steps"}  # lists that are sets


def by_value(settings: Any) -> Any:
    """Settings in which equal ones are written alike: 1 and 1.0, lists that are sets; classes and functions by their own names.

    What is text and should be a number or null, experiments.shared.settings_check.checked has refused or converted before.
    """
    if isinstance(settings, dict):
        found = {str(name): by_value(value) for name, value in settings.items()}
        found |= {name: unordered(value) for name, value in found.items() if name in UNORDERED}
        return found | ({TARGET: str(settings[TARGET]).rpartition(".")[2]} if TARGET in settings else {})
    if isinstance(settings, list | tuple):
        return [by_value(value) for value in settings]
    if isinstance(settings, float):
        number = float(f"{settings:.{DIGITS}g}")
        return int(number) if number.is_integer() else number
    return settings


def unordered(value: Any) -> Any:
    """A list without order and repetition; anything else as it is."""
    return sorted({str(each): each for each in value}.values(), key=str) if isinstance(value, list) else value


def identified(settings: Any, without: Path | None = None) -> Any:
    """Settings by value, with the content of the files that they name in the place of their paths.

    without: a folder that does not count inside of others, such as that of the outputs.
    """

    def of(name: str, value: Any) -> Any:
        if name in PATHS and isinstance(value, str) and (place := located(value)) is not None:
            return {"content": path_content(place, without=without)}
        if isinstance(value, dict):
            return {key: of(key, inner) for key, inner in value.items()}
        return [of("", each) for each in value] if isinstance(value, list | tuple) else value

    return by_value(of("", settings))


def file_contents(settings: dict[str, Any]) -> dict[str, str]:
    """The content of each file or folder that a setting names, by the setting's name."""
    places = {name: located(settings[name]) for name in PATHS if isinstance(settings.get(name), str)}
    return {name: path_content(place) for name, place in places.items() if place is not None}


def pipeline_identity(path: str, revision: str | None) -> Any:
    """What tells a teacher's or a published student's weights from others: the content of its folder, or the hub's commit.

    Cards, pictures and sounds beside the weights do not count. Where there is nothing yet, loading will tell.
    """
    shipped = SHIPPED / path
    place = shipped if (shipped / "model_index.json").is_file() else located(path)
    if place is not None:
        return {"content": path_content(place, SHOWN)}
    commit = commit_of(path, revision) if is_repository(path) else None
    return {"path": path, "revision": revision} if commit is None else {"path": path, "commit": commit}


def data_identity(settings: dict[str, Any], outputs: str) -> dict[str, Any]:
    """What tells the job's data from others: task.data, and the content of all its files, of both splits."""
    found = identified(settings, Path(outputs))
    path = settings.get("path")
    if isinstance(path, str) and located(path) is None and is_repository(path):
        commit = commit_of(path, settings.get("revision"), "dataset")
        found |= {} if commit is None else {"revision": commit}
    return found
