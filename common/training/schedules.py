"""Learning-rate schedules as factors over optimiser steps; a resumed run may change the total."""

import math
from collections.abc import Callable
from typing import Any

from common.errors import InputError

NAMES = ("constant", "cosine", "trapezoid")


def learning_rate_factor(name: str, steps: int, warmup: int, cooldown: float = 0.2) -> Callable[[int], float]:
    """The factor at each step, after a linear warm-up over `warmup` steps.

    constant: 1. cosine: half a cosine down to 0 at `steps`. trapezoid: 1, then a line down to 0 over the last share
    `cooldown` of the steps.
    """
    if name not in NAMES:
        raise InputError(f"schedule={name!r} is none of {', '.join(NAMES)}.")

    def factor(step: int) -> float:
        rising = min(1.0, (step + 1) / max(1, warmup))
        if name == "constant":
            return rising
        if name == "cosine":
            progress = min(1.0, max(0, step - warmup) / max(1, steps - warmup))
            return rising * (1 + math.cos(math.pi * progress)) / 2
        return rising * min(1.0, max(0.0, (steps - step) / max(1, round(cooldown * steps))))

    return factor


def scheduler(name: str, steps: int, warmup: int, cooldown: float = 0.2) -> Callable[[Any], Any]:
    """A function from an optimiser to its torch scheduler."""

    def make(optimizer: Any) -> Any:
        from torch.optim.lr_scheduler import LambdaLR

        return LambdaLR(optimizer, learning_rate_factor(name, steps, warmup, cooldown))

    return make
