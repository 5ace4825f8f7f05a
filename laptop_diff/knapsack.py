"""Which layers to remove: minimal summed loss with at least a wanted size removed (LAPTOP-Diff, arXiv 2404.11098).

A 0-1 knapsack. The paper solves a variant of it by dynamic programming (as far as is known). Here what is filled is the
knapsack of the layers that stay: largest summed loss, sizes within what the budget leaves. Sets of layers are built outwards
from the one that the order of loss per size gives (Pisinger, A minimal algorithm for the 0-1 knapsack problem, 1997), and
those drop out that another set beats in both sums, or that could not pass the best so far even by splitting a layer. All in
whole numbers, since a float is an exact fraction: sizes may be of any unit (parameters, MACs, milliseconds) and any ratio.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

from common.errors import InputError
from common.pruning.layer_pruner import lowest_layers

MANY, BEAM = 1_000_000, 1_000
Kept = tuple[int, int, int]
"""A set of layers that stay: their summed size, minus their summed loss, and the set as bits; so they sort as they compete."""


def select_layers(losses: Sequence[float], sizes: Sequence[float], budget: float) -> list[int]:
    """Indices, ascending, of the layers with the least summed loss whose sizes sum to at least `budget`; exact.

    losses: finite, one per layer; sizes: one per layer, not negative, in the unit of `budget`. A layer with a negative loss
    is always among them: it lowers the sum. After MANY sets in question, as when many losses are proportional to
    unrelated sizes, only the BEAM most promising are followed, and the sum may miss the least by a little.
    InputError when the lengths differ, a number is not finite, a size is negative, or even all layers together fall short of
    the budget.
    """
    if len(losses) != len(sizes):
        raise InputError(f"select_layers: {len(losses)} losses for {len(sizes)} sizes.")
    for name, values in (("loss", losses), ("size", sizes)):
        for index, value in enumerate(values):
            if not math.isfinite(value):
                raise InputError(f"select_layers: the {name} of layer {index} is not finite.")
    if any(size < 0 for size in sizes):
        raise InputError(f"select_layers: layer {next(i for i, size in enumerate(sizes) if size < 0)} has a negative size.")
    if not math.isfinite(budget):
        raise InputError(f"select_layers: the budget is {budget}; a finite number is needed.")
    loss = _whole_numbers(losses)
    *size, wanted = _whole_numbers([*sizes, budget])
    largest = sum(size)
    slack = 0 if isinstance(budget, int) else largest // 10**12  # a share of the sum, in floats, may be above it by rounding
    if wanted > largest + slack:
        raise InputError(f"select_layers: a budget of {budget:g} is out of reach; all layers together have {sum(sizes):g}.")
    layers = [index for index in range(len(loss)) if loss[index] >= 0]
    room = min(largest - wanted, sum(size[index] for index in layers))
    if room < 0:
        return list(range(len(loss)))
    stay = {index for index in layers if size[index] == 0}
    paid = [index for index in layers if loss[index] > 0 and 0 < size[index] <= room]
    stay |= {paid[place] for place in _most_kept([loss[i] for i in paid], [size[i] for i in paid], room)}
    room -= sum(size[index] for index in stay)
    for index in layers:
        if index not in stay and loss[index] == 0 and size[index] <= room:
            stay.add(index)
            room -= size[index]
    return [index for index in range(len(loss)) if index not in stay]


def _whole_numbers(values: Sequence[float]) -> list[int]:
    """The values times one common factor, exactly."""
    fractions = [Fraction(value.item() if hasattr(value, "item") else value) for value in values]
    factor = math.lcm(*(fraction.denominator for fraction in fractions))
    return [int(fraction * factor) for fraction in fractions]


def _most_kept(losses: list[int], sizes: list[int], room: int) -> list[int]:
    """The layers that can stay within `room` with the largest summed loss; losses and sizes are positive, no size above it."""
    order = sorted(range(len(losses)), key=lambda index: Fraction(losses[index], sizes[index]), reverse=True)
    losses, sizes = [losses[index] for index in order], [sizes[index] for index in order]
    first = size = 0  # of the layers that do not all fit any more, in order of loss per size
    while first < len(order) and size + sizes[first] <= room:
        size += sizes[first]
        first += 1
    states = [(size, -sum(losses[:first]), (1 << first) - 1)]
    best, inside, outside, seen = states[0], first - 1, first, 0
    while states and (inside >= 0 or outside < len(order)):
        for place, sign in ((outside, 1), (inside, -1)):
            if not 0 <= place < len(order):
                continue
            step, gain, bit = sign * sizes[place], sign * losses[place], 1 << place
            moved = [(size + step, lost - gain, kept ^ bit) for size, lost, kept in states]
            outside, inside = (outside + 1, inside) if sign > 0 else (outside, inside - 1)
            best = min([best, *(state for state in moved if state[0] <= room)], key=lambda state: state[1])
            more = (losses[outside], sizes[outside]) if outside < len(order) else (0, 1)
            less = (losses[inside], sizes[inside]) if inside >= 0 else None
            states = _in_question(sorted([*states, *moved]), room, -best[1], more, less)
            seen += len(states)
            if seen > MANY and len(states) > BEAM:
                states = sorted(sorted(states, key=lambda state: _reach(state, room, more, less))[-BEAM:])
    return [order[place] for place in range(len(order)) if best[2] >> place & 1]


def _in_question(states: list[Kept], room: int, best: int, more: tuple[int, int], less: tuple[int, int] | None) -> list[Kept]:
    """The sorted states without those that another beats or that cannot pass the summed loss `best`.

    more, less: (loss, size) of the layer that can be added next, and of the one that can be taken away next, if any.
    """
    found: list[Kept] = []
    most = -1
    for state in states:
        if -state[1] > most:
            most = -state[1]
            left = room - state[0]
            loss, size = more if left >= 0 else less or (0, 0)
            if (left >= 0 or less) and (best - most) * size < left * loss:
                found.append(state)
    return found


def _reach(state: Kept, room: int, more: tuple[int, int], less: tuple[int, int] | None) -> int:
    """What the summed loss could become by a part of the next layer until the room is full, times the two sizes."""
    left, less = room - state[0], less or (0, 1)
    (loss, size), (_, other) = (more, less) if left >= 0 else (less, more)
    return (left * loss - state[1] * size) * other


def greedy_layers(losses: Sequence[float], sizes: Sequence[float], budget: float) -> list[int]:
    """A comparison: layers in the order of loss per size until the budget is met."""
    per_size = [loss / max(size, 1e-30) for loss, size in zip(losses, sizes, strict=True)]
    return lowest_layers(per_size, sizes, budget)
