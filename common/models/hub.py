"""Where a teacher's folder is: shipped with the project, given by its path, or downloaded once from the Hugging Face hub."""

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

from common.errors import InputError, first_line
from common.models.honoured_settings import check_pipeline_settings
from common.models.weight_files import best_weights, weight_format
from common.runtime.files import SHIPPED
from common.runtime.progress import under_way
from common.runtime.strict_json import read_json

DENOISERS = ("unet", "transformer")
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
NETWORKS = (*DENOISERS, "vae", "vqvae", *TEXT_ENCODERS)
PARTS = (*NETWORKS, "scheduler", *TOKENIZERS)


def denoiser_part(names: Iterable[str]) -> str:
    """The name of the denoiser among the parts of a pipeline: "unet" or "transformer"; "unet" where there is neither."""
    known = set(names)
    return next((name for name in DENOISERS if name in known), DENOISERS[0])


def shipped_teachers() -> list[str]:
    """The names of the teachers that come with the project."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/model_index.json"))


def is_repository(path: str) -> bool:
    """Whether a path that is no local one can be a repository "owner/name" of the hub."""
    return path.count("/") == 1 and not path.startswith((".", "/", "~"))


def find_folder(name_or_path: str, revision: str | None = None, setting: str = "teacher.path") -> Path:
    """The local folder of a shipped teacher, of a path, or of a hub repository "owner/name" (downloaded once).

    setting: what a person gives a path by, for the InputError.
    """
    if (SHIPPED / name_or_path / "model_index.json").is_file():
        return SHIPPED / name_or_path
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise InputError(f"{folder} has no model_index.json: it is not a diffusers pipeline folder.")
        return folder
    if folder.is_file():
        raise InputError(f"{setting}={name_or_path} is a file; a diffusers pipeline folder is needed.")
    if not is_repository(name_or_path):
        what = "teacher" if setting == "teacher.path" else "pipeline"
        raise InputError(
            f"There is no {what} {name_or_path!r}: shipped are {', '.join(shipped_teachers()) or 'none'}; "
            "else give the path of a diffusers folder or a hub name 'owner/name'."
        )
    return download(name_or_path, revision, setting)


def wanted_files(names: Iterable[str]) -> list[str]:
    """Of a pipeline repository's files: the index, and of each part its settings and one set of weights (weight_files.py)."""
    names = sorted(names)
    wanted = [name for name in names if name == "model_index.json"]
    for part in (*PARTS, "mel"):
        inside = [name for name in names if PurePosixPath(name).parent == PurePosixPath(part)]
        best = best_weights(PurePosixPath(name).name for name in inside)
        for name in inside:
            kind = weight_format(PurePosixPath(name).name)
            if kind == best if kind else name.endswith((".json", ".txt", ".model", ".jinja")):
                wanted.append(name)
    return wanted


def settings_files(names: Iterable[str]) -> list[str]:
    """Of a transformers repository's files: what tokenizer and preprocessing are made of, and the architecture."""
    return [name for name in names if "/" not in name and name.endswith((".json", ".txt")) and weight_format(name) is None]


def wanted_model_files(names: Sequence[str]) -> list[str]:
    """Of a transformers model's repository: its settings, and one set of the weights at its top."""
    weights = [name for name in names if "/" not in name and weight_format(name) is not None]
    return [*settings_files(names), *(name for name in weights if weight_format(name) == best_weights(weights))]


def download(name: str, revision: str | None, setting: str) -> Path:
    """The folder of a pipeline's hub repository, as `snapshot`; `setting`: what a person gives a path by.

    Its settings come first: InputError for one that is not honoured, before any weights.
    """

    def wanted(names: list[str]) -> list[str]:
        if "model_index.json" not in names:
            raise InputError(f"The hub repository {name!r} has no model_index.json: it is not a diffusers pipeline.")
        return wanted_files(names)

    def check(folder: Path) -> None:
        check_pipeline_settings(folder, read_json(folder / "model_index.json"))

    return snapshot(name, revision, wanted, "model_index.json", f"{setting}=<folder>", check=check)


def snapshot(
    name: str,
    revision: str | None,
    wanted: Callable[[list[str]], list[str]],
    marker: str,
    instead: str,
    check: Callable[[Path], None] | None = None,
) -> Path:
    """The folder of a hub repository's snapshot in the hub's own cache; what is there already is not loaded again.

    wanted: which of its files are loaded. check: looks at the settings among them before any
    weights are loaded. Without a connection, which is noticed at once, a
    snapshot in the cache is taken that has the file `marker`; what it may lack, loading the parts will tell. InputError in one
    line, with what to give `instead`, for a repository that is gated or absent, for an absent revision, and for a hub out of
    reach.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():  # its bars are not for a log
        disable_progress_bars()

    def told(what: str) -> InputError:
        return InputError(f"The hub repository {name!r} {what}, or download it elsewhere and give {instead}.")

    try:
        listed = HfApi().model_info(name, revision=revision).siblings  # list_repo_files waits long for a hub out of reach
        found = wanted([file.rfilename for file in listed])
        if check is not None:
            settings = [each for each in found if weight_format(PurePosixPath(each).name) is None]
            with under_way(f"loading the settings of {name} from the hub"):
                check(Path(snapshot_download(name, revision=revision, allow_patterns=settings)))
        with under_way(f"loading {name} from the hub"):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=found))
        if COMMITS.get((name, revision, "model"), folder.name) != folder.name:
            raise InputError(f"The hub repository {name!r} has changed since this command began; run it again.")
        return folder
    except InputError:
        raise
    except GatedRepoError as error:  # a kind of RepositoryNotFoundError, and so before it
        raise told("is gated: accept its licence on its page and log in (hf auth login)") from error
    except RepositoryNotFoundError as error:
        raise told("does not exist, or is private: check the name and log in (hf auth login)") from error
    except RevisionNotFoundError as error:
        raise told(f"has no revision {revision!r}: give a commit, branch or tag of it") from error
    except Exception as error:  # the hub's client raises many kinds where it is offline, refused or interrupted
        kept = cached(name, revision)
        if kept is not None and (kept / marker).is_file():
            return kept
        raise told(f"cannot be read ({first_line(error)}): check the connection") from error


COMMITS: dict[tuple[str, str | None, str], str] = {}  # what commit_of has told in this process


def commit_of(name: str, revision: str | None, kind: str = "model") -> str | None:
    """The commit that a revision of a hub's repository stands for, asked once in a process.

    That is the revision itself, or what the hub says now, or the hub's cache where the hub is out of reach; None where neither
    knows. kind: "model" or "dataset".
    """
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    if (name, revision, kind) not in COMMITS:
        from huggingface_hub import HfApi

        try:
            COMMITS[name, revision, kind] = HfApi().repo_info(name, revision=revision, repo_type=kind).sha
        except Exception:  # of many kinds; whoever loads it will tell
            kept = cached(name, revision, kind)
            if kept is None:
                return None
            COMMITS[name, revision, kind] = kept.name
    return COMMITS[name, revision, kind]


def cached(name: str, revision: str | None, kind: str = "model") -> Path | None:
    """The snapshot of a revision that an earlier download has left in the hub's cache, whole or not."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, repo_type=kind, allow_patterns=[], local_files_only=True))
    except Exception:  # no snapshot of this revision: whatever the kind, there is none to use
        return None
