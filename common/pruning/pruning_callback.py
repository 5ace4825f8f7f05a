"""What a method does while a network is trained."""

import lightning as L
from torch import nn


class PruningCallback(L.Callback):
    """A Lightning callback of a method: masks that grow, weights that come back. Its state is part of every checkpoint."""

    def report(self) -> dict[str, float | int]:
        """What the result row says of it after training."""
        return {}

    def finish(self, network: nn.Module) -> None:
        """Has the last word on the trained weights of `network`, in place: masks over averaged weights, say."""
