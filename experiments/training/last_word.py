"""What a method does to a network at the end of its training."""

from collections.abc import Sequence
from typing import Any

from torch import nn


def last_word(network: nn.Module, callbacks: Sequence[Any]) -> None:
    """Calls finish(network) of the callbacks that have it, in place: masks over averaged weights, say."""
    for callback in callbacks:
        if hasattr(callback, "finish"):
            callback.finish(network)
