"""Scores of images by a command of another environment: for metrics whose packages do not go together with this project's."""

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image

from common.errors import InputError
from common.metrics.jackknife import Figures

PROMPTS = "prompts.jsonl"
# of this process, and of the starters of several (common.runtime.processes): the command is one of its own
OWN_ENVIRONMENT = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "MASTER_ADDR", "MASTER_PORT")
OWN_ENVIRONMENT += ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
STARTERS = ("TORCHELASTIC_", "SLURM_", "SUBMITIT_")


class ExternalScores:
    """Means over images of what a command says of each.

    command: run once for each model with a folder as its last argument, such as "/envs/hpsv3/bin/python score.py". The folder
    has images 000000.png, 000001.png, ... and prompts.jsonl, a line {"file": "000000.png", "prompt": "a red apple"} for each
    ("prompt" is "" without captions). The last line that it prints is an object in JSON, a list for each of `scores` with a
    number for each image in the order of the lines: {"hpsv3": [7.1, 6.4]}. timeout: in seconds; None: none.
    """

    needs_real = False

    def __init__(self, command: str | None, scores: tuple[str, ...], timeout: float | None = None):
        self.command, self.scores, self.timeout = command, tuple(scores), timeout

    def load(self, device: torch.device) -> None:
        """Nothing; InputError without a command that can be run, or the names of its scores."""
        try:
            words = shlex.split(self.command or "")
        except ValueError as error:
            raise InputError(f"metrics.external.command={self.command}: {error}.") from error
        if not words or not self.scores:
            raise InputError("metrics.external: give the command and the names of its scores (docs/paper_scale.md).")
        program = words[0]
        if shutil.which(program) is None:
            raise InputError(f"metrics.external.command: there is no {program} that could be run.")

    def rows_of(self, batches: Iterable[tuple[torch.Tensor, Sequence[str] | None]]) -> torch.Tensor:
        """Scores (count, len(self.scores)) of batches of uint8 images (count, 1 or 3, height, width) and their captions."""
        with TemporaryDirectory() as name:
            folder, count = Path(name), 0
            with open(folder / PROMPTS, "w", encoding="utf-8") as prompts:
                for images, captions in batches:
                    for place, image in enumerate(images):
                        file, count = f"{count:06d}.png", count + 1
                        pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
                        Image.fromarray(pixels.contiguous().numpy()).save(folder / file)
                        prompt = "" if captions is None else captions[place]
                        prompts.write(json.dumps({"file": file, "prompt": prompt}, ensure_ascii=False) + "\n")
            return self.read(self.run(folder), count)

    def run(self, folder: Path) -> str:
        """The last line that the command prints of a folder."""
        words = [*shlex.split(self.command or ""), str(folder)]
        own = {name for name in os.environ if name in OWN_ENVIRONMENT or name.startswith(STARTERS)}
        environment = {name: value for name, value in os.environ.items() if name not in own}
        options = {"capture_output": True, "text": True, "errors": "replace", "check": False, "env": environment}
        try:
            done = subprocess.run(words, timeout=self.timeout, **options)
        except subprocess.TimeoutExpired as error:
            raise InputError(f"metrics.external.command did not end within {self.timeout:g} s.") from error
        except OSError as error:
            raise InputError(f"metrics.external.command cannot be run: {error}") from error
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["nothing on standard error"])[-1]
            raise InputError(f"metrics.external.command ended with {done.returncode}: {last}")
        return (done.stdout.strip().splitlines() or [""])[-1]

    def read(self, line: str, count: int) -> torch.Tensor:
        """Scores (count, len(self.scores)) of that line."""
        try:
            found = json.loads(line)
            columns = [found[name] for name in self.scores]
            rows = torch.tensor(columns, dtype=torch.float64).T
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            wanted = ", ".join(f'"{name}": [...]' for name in self.scores)
            raise InputError(f"metrics.external.command: its last line is no {{{wanted}}} of numbers: {line[:80]}") from error
        if rows.shape != (count, len(self.scores)) or not rows.isfinite().all():
            raise InputError(f"metrics.external.command: {count} finite numbers of each score are needed, one an image.")
        return rows

    def figures(self, rows: torch.Tensor, real: torch.Tensor | None, seed: int) -> Figures:
        return lambda kept: dict(zip(self.scores, rows[kept].mean(0).tolist(), strict=True))
