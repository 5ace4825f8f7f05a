"""How a command ends when something is wrong: one line on standard error and an exit code that is not 0."""

import errno
import functools
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from multiprocessing import current_process
from pathlib import Path
from typing import Any, NoReturn

from common.errors import InputError
from common.runtime.collectives import reports_the_end
from common.runtime.files import ROOT, refusal
from common.runtime.processes import is_first
from common.runtime.signals import Ended, raised_signals
from common.shown_text import one_line
from experiments.shared.streams import print_what_can_be_printed

SHOWN = 6  # options of a group in a message
GO_ON = "the same command then goes on from here"
REFUSALS = {  # of the system: what a person does about them
    errno.ENOSPC: f"free some; {GO_ON}",
    errno.EDQUOT: f"free some; {GO_ON}",
    errno.EROFS: "give another folder (outputs=<folder>)",
    errno.EACCES: "give another folder (outputs=<folder>), or the permission",
    errno.EPERM: "give another folder (outputs=<folder>), or the permission",
    errno.ENOTDIR: "a file is where a folder is needed: move it, or give another folder (outputs=<folder>)",
    errno.EEXIST: "a file is where a folder is needed: move it, or give another folder (outputs=<folder>)",
    errno.EISDIR: "a folder is where a file is needed: move it",
    errno.ENAMETOOLONG: "give a shorter one",
    errno.EFBIG: f"allow larger files (ulimit -f); {GO_ON}",
    errno.EIO: f"the disk, or the connection to it, has failed; {GO_ON}",
    errno.EMFILE: f"allow more (ulimit -n); {GO_ON}",
}


def one_line_errors(command: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`command` with InputError and a full disk told in one line (exit code 2), and a signal that ends it likewise (128 + it).

    Of several processes that run a job together, one tells it.
    """

    @functools.wraps(command)
    def run(settings: Any) -> Any:
        print_what_can_be_printed()
        try:
            with raised_signals():
                return command(settings)
        except BrokenPipeError:
            end_unread()
        except Exception as error:
            message = explain(error)
            if not reports_the_end():
                sys.exit(2)
            if message is None:
                raise
            print(f"error: {message}", file=sys.stderr)
            sys.exit(2)
        except Ended as ended:
            tell_end(ended)

    return run


def tell_end(ended: Ended) -> NoReturn:
    """Says what ended the command, in one line of one process, and exits with 128 and the signal's number."""
    worker = current_process().name.startswith("Loky")  # of joblib's launcher: the command itself tells it
    if not worker and reports_the_end():
        print(f"{ended}; the same command goes on from here", file=sys.stderr, flush=True)
    sys.exit(ended.exit_code)


def share_config_store() -> None:
    """Keeps Hydra from copying its store of schemas, which nobody changes, with each look at a group (167 times for --help)."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.__deepcopy__ = lambda self, memo: self


@contextmanager
def one_line_composition_errors() -> Iterator[None]:
    """What Hydra finds wrong with the command line told in one line (exit code 1); HYDRA_FULL_ERROR=1 shows it all."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    print_what_can_be_printed()
    share_config_store()
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        yield
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise what it would print over several lines
    try:
        with raised_signals():
            yield
    except Ended as ended:
        tell_end(ended)
    except BrokenPipeError:
        end_unread()
    except (HydraException, OmegaConfBaseException) as error:  # before OSError, of which some are a kind
        if is_first():
            print(f"error: {one_line(composition_error(error))}", file=sys.stderr)
        sys.exit(1)
    except ValueError as error:  # of Hydra's list of defaults
        if "Config group override" not in str(error):
            raise
        if is_first():
            print(f"error: {one_line(error)}: name an option of the group.", file=sys.stderr)
        sys.exit(1)
    except OSError as error:  # in making the job's folder
        message = explain(error)
        if message is None:
            raise
        if is_first():
            print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


def composition_error(error: Exception) -> str:
    """What Hydra finds wrong with the command line, in one line; of a choice that is not there, with those that are."""
    message = " ".join(str(error).partition("Config search path:")[0].split())
    if unknown := re.match(r"Could not override '([^']+)'", message):
        return f"{unknown[1]}: there is no such setting{likely(unknown[1])} (python run.py --cfg job shows all there are)"
    missing = getattr(error, "missing_cfg_file", None)
    if missing and "Available options" not in message:
        group = ROOT / "conf" / Path(missing).parts[0]
        options = sorted(str(path.relative_to(group).with_suffix("")) for path in group.rglob("*.yaml"))
        return f"{message} {f'Available options: {chr(32).join(options)}' if options else ''}".strip()
    return message


def likely(name: str) -> str:
    """What a person who gave a setting that is not there may have meant: another name, or another option of its group."""
    import yaml

    def read(path: Path, prefix: str = "") -> set[str]:
        text = path.read_text(encoding="utf-8")
        if "@package" in text.partition("\n")[0]:  # its settings are other groups'
            return set()
        values = yaml.safe_load(text)
        bases = [path.with_name(f"{base}.yaml") for base in (values or {}).get("defaults", []) if isinstance(base, str)]
        return settings_in(values, prefix).union(*(read(base, prefix) for base in bases if base.is_file()))

    conf, command = ROOT / "conf", Path(sys.argv[0]).stem
    own = conf / f"{command}.yaml"
    options = {path: read(path, ".".join([*path.relative_to(conf).parent.parts, ""])) for path in conf.glob("*/**/*.yaml")}
    groups = {path: str(path.relative_to(conf).parent) for path in options}
    having = sorted(f"{groups[path]}={path.stem}" for path, settings in options.items() if name in settings)
    if having and command == "run":
        return f" here; it is one of {', '.join(having[:SHOWN])}{' and others' if len(having) > SHOWN else ''}"
    known = read(own if own.is_file() else conf / "config.yaml").union(*options.values())
    alike = sorted(each for each in known if each.count(".") == name.count("."))
    near = get_close_matches(name, alike, n=1, cutoff=0.8)
    return f"; {near[0]} is one" if near else ""


def settings_in(values: Any, prefix: str = "") -> set[str]:
    """The names of settings in a mapping, those inside others with dots, groups' lists of defaults apart."""
    if not isinstance(values, dict):
        return set()
    own = {f"{prefix}{name}" for name in values if name not in ("defaults", "_target_")}
    return own.union(*(settings_in(value, f"{prefix}{name}.") for name, value in values.items()))


def end_unread() -> NoReturn:
    """Ends the command without a word (exit code 1) where nobody reads what it prints any more: run.py ... | head."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what is not written yet
    sys.exit(1)


def explain(error: BaseException | None) -> str | None:
    """What to tell a person of `error` or of what caused it; None for what is no fault of theirs."""
    while error is not None:
        if isinstance(error, InputError):
            return str(error)
        if (number := refusal(error)) in REFUSALS:
            where = getattr(error, "filename", None)
            return f"{os.strerror(number)}{f': {where}' if where else ''}; {REFUSALS[number]}"
        error = error.__cause__
    return None


@contextmanager
def ending(code: int) -> Iterator[None]:
    """An error inside is told in one line and ends the command: Hydra makes a warning of a callback's, and goes on."""
    try:
        yield
    except Exception as error:
        print(f"error: {error_line(error)}", file=sys.stderr)
        sys.exit(code)


def error_line(error: Exception) -> str:
    """What to tell of any error in one line."""
    return explain(error) or f"{type(error).__name__}: {one_line(error)}"
