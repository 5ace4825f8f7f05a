"""Scores that survive a kill: written as they come, read again by the same command."""

from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.runtime.collectives import on_first
from common.runtime.files import write_json
from common.runtime.processes import is_first
from common.runtime.strict_json import read_json


def is_scores(parts: Any) -> bool:
    """Whether they are lists of numbers by site."""
    if not (isinstance(parts, dict) and all(isinstance(each, list) for each in parts.values())):
        return False
    return all(isinstance(value, int | float) for value in chain(*parts.values()))


@dataclass
class ScoreFile:
    """Scores by site as parts that are summed (one per condition, or per calibration batch); kept in `path` if given.

    Of several processes that score together the first one reads and writes the file.
    """

    path: Path | None = None
    parts: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path | None) -> "ScoreFile":
        """The scores in `path`, or none yet; InputError naming the file when it is damaged."""
        return on_first(lambda: cls.read(path))

    @classmethod
    def read(cls, path: Path | None) -> "ScoreFile":
        if path is None or not path.is_file():
            return cls(path)
        remedy = "delete it and the scores are computed anew"
        parts = read_json(path, remedy, ("parts",))["parts"]
        if not is_scores(parts):
            raise InputError(f"{path} is damaged (its scores are no numbers by site); {remedy}.")
        return cls(path, parts)

    def known(self, site: str) -> list[float]:
        """The first parts of the site's score, as far as they are computed."""
        return self.parts.get(site, [])

    def save(self) -> None:
        if self.path is not None and is_first():
            write_json(self.path, {"parts": self.parts})
