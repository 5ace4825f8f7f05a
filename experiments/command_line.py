"""How a command ends when something is wrong: one line on standard error and an exit code that is not 0."""

import errno
import functools
import os
import re
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.collectives import speaks
from common.errors import InputError
from common.files import ROOT
from common.processes import is_first
from common.shown_text import one_line
from experiments.streams import print_what_can_be_printed


def one_line_errors(command: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`command` with InputError and a full disk told in one line (exit code 2), and an interrupt likewise (130).

    Of several processes that run a job together, one tells it.
    """

    @functools.wraps(command)
    def run(settings: Any) -> Any:
        print_what_can_be_printed()
        try:
            return command(settings)
        except Exception as error:
            end_if_unread()
            message = explain(error)
            if not speaks():
                sys.exit(2)
            if message is None:
                raise
            print(f"error: {message}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            if is_first():
                print("interrupted; the same command goes on from here", file=sys.stderr)
            sys.exit(130)

    return run


@contextmanager
def one_line_composition_errors() -> Iterator[None]:
    """What Hydra finds wrong with the command line told in one line (exit code 1); HYDRA_FULL_ERROR=1 shows it all."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    print_what_can_be_printed()
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        yield
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise what it would print over several lines
    try:
        yield
        end_if_unread()
    except (HydraException, OmegaConfBaseException) as error:
        if is_first():
            print(f"error: {one_line(composition_error(error))}", file=sys.stderr)
        sys.exit(1)


def composition_error(error: Exception) -> str:
    """What Hydra finds wrong with the command line, in one line; of a choice that is not there, with those that are."""
    message = " ".join(str(error).partition("Config search path:")[0].split())
    if unknown := re.match(r"Could not override '([^']+)'", message):
        return f"{unknown[1]}: there is no such setting (python run.py --cfg job shows all there are)"
    missing = getattr(error, "missing_cfg_file", None)
    if missing and "Available options" not in message:
        group = ROOT / "conf" / Path(missing).parts[0]
        options = sorted(str(path.relative_to(group).with_suffix("")) for path in group.rglob("*.yaml"))
        return f"{message} {f'Available options: {chr(32).join(options)}' if options else ''}".strip()
    return message


def end_if_unread() -> None:
    """Ends the command without a word (exit code 1) where nobody reads what it prints any more: run.py ... | head."""
    output = select.poll()
    output.register(1, 0)
    if any(event & select.POLLERR for _, event in output.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what is not written yet
        sys.exit(1)


def explain(error: BaseException | None) -> str | None:
    """What to tell a person of `error` or of what caused it; None for what is no fault of theirs."""
    while error is not None:
        if isinstance(error, InputError):
            return str(error)
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error):
            return f"no space left on the disk ({getattr(error, 'filename', None) or 'outputs'}); free some and rerun"
        error = error.__cause__
    return None
