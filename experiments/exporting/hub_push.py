"""Sends an exported folder to a repository of the Hugging Face hub."""

from pathlib import Path

from common.errors import InputError, first_line


def check_pushable(repository: str) -> None:
    """InputError when `repository` is not owner/name, or when there is no token: before the long work."""
    from huggingface_hub import get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise InputError(f"--push {repository}: {error}") from error
    if repository.count("/") != 1:
        raise InputError(f"--push {repository}: the name of a repository is needed, owner/name.")
    if not get_token():
        raise InputError("--push needs a token of the hub that may write: hf auth login, or HF_TOKEN in the environment.")


def push(folder: Path, repository: str, private: bool, message: str) -> str:
    """Creates the repository where there is none, sends all files in one commit, and returns the commit's address."""
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except Exception as error:  # the hub's client raises many kinds: offline, refused, too large
        raise InputError(f"--push {repository} failed ({first_line(error)}); the exported folder is whole: {folder}") from error
    return str(commit.commit_url)
