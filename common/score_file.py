"""Scores that survive a kill: written as they come, read again by the same command."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from common.collectives import on_first
from common.errors import InputError
from common.files import write_json
from common.processes import is_first


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
        try:
            document = json.loads(path.read_text())
            return cls(path, document["parts"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(f"The score file {path} is damaged; delete it and the scores are computed anew.") from error

    def known(self, site: str) -> list[float]:
        """The first parts of the site's score, as far as they are computed."""
        return self.parts.get(site, [])

    def save(self) -> None:
        if self.path is not None and is_first():
            write_json(self.path, {"parts": self.parts})
