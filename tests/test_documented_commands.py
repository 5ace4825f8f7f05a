"""Every command of the documentation is one: its settings compose and pass their checks, its options are there."""

import re
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf, open_dict

from experiments.shared.settings_check import checked
from tests.commands import ROOT
from tests.test_conf import compose_config

pytestmark = pytest.mark.slow

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAM = r"(?:python3?|torchrun[^`]*?|srun[^`]*?) (run\.py\b[^`]*|-m experiments\.\w+\b[^`]*)"
CONFIGS = {"run.py": "config", "experiments.teacher_card": "config", "experiments.layer_report": "config"}
CONFIGS |= {f"experiments.{name}": name for name in ("additivity", "distance_power", "precompute", "train_teacher")}


def commands():
    """Page and command of each, without its comment: in code, lines that end in a backslash joined, and in sentences."""
    for page in PAGES:
        text = re.sub(r"\\\n\s*", "", page.read_text())
        code = [re.search(PROGRAM, line) for line in text.splitlines() if line.startswith("    ")]
        for found in [*filter(None, code), *re.finditer(f"`{PROGRAM}`", text)]:
            yield page.relative_to(ROOT), re.sub(r"\s{2,}#.*", "", found[1].replace("\n", " ")).strip()


COMMANDS = sorted(each for each in set(commands()) if "my_method" not in each[1])  # which tests/test_run.py runs


def words_of(command):
    """The words as a shell makes them, with a name where the page leaves one open, and {a=1,b=2} as the shell expands it."""
    words = []
    for word in shlex.split(re.sub(r"<[^>]*>", "anything", re.sub(r"(?<= )\[[^]\[]*=[^]\[]*\]", "", command))):
        expanded = re.fullmatch(r"(\S+\.)\{([\w.]+=.*)\}", word)
        words += [expanded[1] + part for part in expanded[2].split(",")] if expanded else [word]
    return [word for word in words if word not in ("...", "wandb.project=...", "experiment=")]


def first_of(override):
    """Of the values that a sweep goes through the first."""
    parsed = OverridesParser.create().parse_override(override)
    if not parsed.is_sweep_override():
        return override
    return f"{parsed.get_key_element()}={next(parsed.sweep_string_iterator())}"


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{page}-{command}" for page, command in COMMANDS])
def test_it_is_a_command(page, command):
    program, *words = words_of(command)
    if program == "-m":
        program, words = words[0], words[1:]
    flags = [word for word in words if word.startswith("-")]
    if "..." in command:  # what the page began with
        first = next(words_of(other) for where, other in commands() if where == page)
        own = {word.partition("=")[0] for word in words}
        mine = "method." if "method" in own else ()  # settings of another method
        words = [*(word for word in first[1:] if word.partition("=")[0] not in own and not word.startswith(mine)), *words]
    if program not in CONFIGS:
        source = (ROOT / f"{program.replace('.', '/')}.py").read_text()
        assert all(f'"{flag.partition("=")[0]}"' in source for flag in flags), flags
        return
    assert set(flags) <= {"-m", "--help", "--cfg"}
    overrides = [word for word in words if "=" in word]
    assert len(overrides) + len(flags) + ("--cfg" in flags) == len(words), words
    cfg = compose_config(CONFIGS[program], *map(first_of, overrides))
    with open_dict(cfg):
        cfg.pop("hydra")
    assert OmegaConf.to_container(checked(cfg))


def test_all_pages_are_read():
    assert (
        len(COMMANDS) > 80 and len({page for page, _ in COMMANDS}) > 8 and Path("README.md") in {page for page, _ in COMMANDS}
    )
