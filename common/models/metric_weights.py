"""Published weights of the networks that metrics look through."""

from pathlib import Path

import torch

from common.errors import InputError, first_line


def weights_file(url: str, given: Path | None) -> Path:
    """The file `given`, or without one the file of that address in torch.hub's cache, where it is downloaded once.

    InputError, with the address, where it is in neither.
    """
    path = given or Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file() and given is None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except OSError as error:  # urllib's are among them
            raise InputError(f"{path} is missing and {url} cannot be reached ({first_line(error)}).") from error
    if not path.is_file():
        raise InputError(f"{path} is missing: download {url} there.")
    return path
