"""Speed of several networks against one of them, in one run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Latency:
    """Median and interquartile range in milliseconds; the ratio to the reference is the median of the paired ratios.

    ratio_spread is the interquartile range of the paired ratios; time_reduction is 1 - ratio (LD-Pruner's "speedup").
    """

    milliseconds: float
    interquartile_range: float
    ratio: float
    ratio_spread: float
    time_reduction: float


def compare_latency(
    calls: dict[str, Callable[[], Any]], reference: str, rounds: int = 10, warmup: int = 2
) -> dict[str, Latency]:
    """Times every call once a round, in turn (torch.utils.benchmark, which synchronises CUDA)."""
    from torch.utils.benchmark import Timer

    timers = {name: Timer("call()", globals={"call": call}) for name, call in calls.items()}
    for timer in timers.values():
        timer.timeit(warmup)
    times = {name: np.empty(rounds) for name in calls}
    for position in range(rounds):
        for name, timer in timers.items():
            times[name][position] = 1000 * timer.timeit(1).mean
    latencies = {}
    for name, values in times.items():
        ratios = values / times[reference]
        ratio = float(np.median(ratios))
        low, high = np.percentile(values, [25, 75])
        ratio_low, ratio_high = np.percentile(ratios, [25, 75])
        latencies[name] = Latency(float(np.median(values)), float(high - low), ratio, float(ratio_high - ratio_low), 1 - ratio)
    return latencies
