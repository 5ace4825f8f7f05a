"""When weights are pruned during training: sparsity that rises by a cubic curve (Zhu and Gupta, arXiv 1710.01878)."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Ramp:
    """From `initial` to `final` sparsity over the first `share` of the optimiser steps, pruned anew every `every` steps."""

    initial: float
    final: float
    share: float
    every: int

    def last(self, steps: int) -> int:
        """The step, counted from 1, at which `final` is reached."""
        return max(1, math.ceil(self.share * steps))

    def due(self, step: int, steps: int, acted: int) -> bool:
        """Whether step `step` (from 1) of `steps` prunes: where a step after `acted`, the last one that did, was meant to.

        A step that an optimiser skips (overflow in fp16) is thus made good by the next one.
        """
        last = self.last(steps)
        return any(s == last or s % self.every == 0 for s in range(acted + 1, min(step, last) + 1))

    def target(self, step: int, steps: int) -> float:
        """s_t = s_f + (s_i - s_f) (1 - t / T)^3 after `step` steps, T = last(steps)."""
        remaining = 1 - min(1.0, step / self.last(steps))
        return self.final + (self.initial - self.final) * remaining**3
