"""BK-SDM, Diff-Pruning, magnitude, random layers and the dense teacher itself on the same contract.

baselines.bk_sdm.build_student(unet, variant) gives one of BK-SDM's students as a stock diffusers model.
"""

import common  # noqa: F401  # before diffusers, which it lets import torchvision
