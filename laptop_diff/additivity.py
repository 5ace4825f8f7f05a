"""Do single-layer losses add up? LAPTOP-Diff's knapsack rests on it (arXiv 2404.11098: "additivity").

For random sets of layers the sum of the single-layer losses is compared with the loss of removing the whole set, under the
same criterion, and with the output loss of removing the whole set, which is what a student starts from.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from common.diffusion.sampling import predict
from common.errors import InputError
from common.pruning.layers import Layer
from common.pruning.plan import edited
from common.runtime.seeding import generator_for
from common.scoring.calibration import Calibration
from common.scoring.noisy_batches import noisy_batches
from common.scoring.score_file import ScoreFile
from laptop_diff.criteria import alignment_of, batch_loss, condition_chunks

JOINT = ("output", "task", "alignment")  # criteria that say what a set of layers costs; the others score single layers


def random_subsets(layers: int, sizes: Sequence[int], per_size: int, seed: int) -> list[tuple[int, ...]]:
    """`per_size` seeded draws of each size, as ascending indices. InputError for a size that is not from 1 to `layers`."""
    subsets = []
    for size in sizes:
        if not 1 <= size <= layers:
            raise InputError(f"additivity.sizes: {size} layers cannot be drawn of {layers}; sizes are from 1 to {layers}.")
        for draw in range(per_size):
            order = torch.randperm(layers, generator=generator_for(seed, size, draw)).tolist()
            subsets.append(tuple(sorted(order[:size])))
    return subsets


@torch.no_grad()
def joint_losses(
    unet: nn.Module,
    layers: Sequence[Layer],
    subsets: Sequence[tuple[int, ...]],
    calibration: Calibration,
    file: ScoreFile,
    *,
    criterion: str,
    timesteps: str = "even",
    guidance_scale: float = 1.0,
    batch_size: int = 32,
    seed: int = 0,
    advance: Callable[[int], None] = lambda count: None,
) -> list[float]:
    """The loss of removing all layers of each subset at once; `criterion` is one of JOINT, the rest as for layer_losses.

    `file` holds what is known already and grows with every subset.
    """
    if criterion not in JOINT:
        raise InputError(f"There is no joint loss of criterion {criterion!r}; there is one of {', '.join(JOINT)}.")
    names = [" ".join(layers[index].site for index in subset) for subset in subsets]
    waiting = [(name, subset) for name, subset in zip(names, subsets, strict=True) if not file.known(name)]
    advance(len(names) - len(waiting))
    if waiting and criterion == "alignment":
        chunks = condition_chunks(calibration, batch_size)

        def aligned() -> float:
            return sum(alignment_of(unet, calibration, chosen)[0] for chosen in chunks)

        intact = aligned()
    elif waiting:
        batches = noisy_batches(calibration, timesteps, batch_size, guidance_scale > 1, seed)
        outputs = [predict(unet, batch.latents, batch.timesteps, batch.conditions) for batch in batches]
    for name, subset in waiting:
        with edited(unet, [layers[index].edit for index in subset], {}):
            if criterion == "alignment":
                loss = intact - aligned()
            else:
                changed = [predict(unet, batch.latents, batch.timesteps, batch.conditions) for batch in batches]
                triples = zip(batches, outputs, changed, strict=True)
                loss = sum(batch_loss(unet, *triple, criterion == "task", guidance_scale) for triple in triples)
        file.parts[name] = [loss]
        file.save()
        advance(1)
    return [file.known(name)[0] for name in names]
