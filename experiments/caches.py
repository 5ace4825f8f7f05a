"""Tensors that several jobs share, computed once and written whole or not at all."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from common.errors import InputError
from common.files import write_atomically
from common.locks import locked


def content_name(*parts: Any) -> str:
    """A short name for what something depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def cached_tensors(path: Path, compute: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The tensors in `path`, computed and written when it is not there; InputError naming a damaged file.

    Of several processes that need them at the same time one computes, and the others wait.
    """
    from safetensors.torch import save

    if not path.is_file():
        lock = path.with_name(f".{path.name}.lock")
        with locked(lock, f"{path} is being computed"):
            if not path.is_file():
                write_atomically(path, save({name: value.contiguous().cpu() for name, value in compute().items()}))
            lock.unlink(missing_ok=True)  # whoever waits for it, or comes now, finds the tensors
    return load_tensors(path)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors in `path`; InputError naming a damaged file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"The cache {path} is damaged ({error}); delete it and it is computed anew.") from error
