"""BK-SDM, Diff-Pruning, magnitude, random layers and the dense teacher itself on the same contract."""

import common  # noqa: F401  # before diffusers, which it lets import torchvision
