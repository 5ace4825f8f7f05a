"""Trains a teacher's autoencoder: pixels to latents and back."""

from dataclasses import asdict
from pathlib import Path

import hydra
import torch
from safetensors.torch import load_file
from torch import nn

from common.cost.macs import count_parameters
from common.diffusion.latents import encode_images
from common.errors import InputError
from common.models.saving import save_whole
from common.training.batches import TensorRows
from common.training.fit import fit
from common.training.schedules import scheduler as learning_rate
from experiments.shared.settings import TrainTeacher


def train_autoencoder(training: TrainTeacher, images: torch.Tensor, work: Path) -> nn.Module:
    """The trained autoencoder with normalised latents, from `work` if it is there; as it is in training.autoencoder."""
    settings = training.teacher_training.autoencoder
    kind = hydra.utils.get_class(settings.network["_target_"])
    finished = work / settings.part
    if training.autoencoder is not None:
        finished = Path(training.autoencoder) / settings.part
        if not (finished / "config.json").is_file():
            raise InputError(f"autoencoder={training.autoencoder}: {finished} holds no autoencoder.")
    elif not (finished / "config.json").is_file():
        torch.manual_seed(training.seed)
        if training.start is None:
            autoencoder = hydra.utils.instantiate(settings.network, _convert_="all")
            if settings.initial is not None:
                taken = take_equal_weights(autoencoder, Path(settings.initial))
                print(f"autoencoder: {taken:.0%} of its parameters start as those of {settings.initial}", flush=True)
        else:
            autoencoder = kind.from_pretrained(Path(training.start) / settings.part, torch_dtype=torch.float32)
        module = hydra.utils.instantiate(settings.objective)(
            autoencoder.train(),
            hydra.utils.instantiate(settings.optimizer),
            learning_rate(**asdict(settings.schedule), steps=settings.steps),
            seed=training.seed,
        )
        fit(
            module,
            TensorRows(images=images),
            steps=settings.steps,
            batch_size=settings.batch_size,
            seed=training.seed,
            folder=work / "autoencoder",
            description="autoencoder",
            checkpoint_every=training.teacher_training.checkpoint_every,
            trainer=training.teacher_training.trainer,
        )
        autoencoder = autoencoder.cpu().eval()
        module.normalize_latents(encode_images(autoencoder, images))
        save_whole(autoencoder, finished)
    return kind.from_pretrained(finished, torch_dtype=torch.float32, low_cpu_mem_usage=False).eval()


@torch.no_grad()
def take_equal_weights(network: nn.Module, folder: Path) -> float:
    """Copies the weights in `folder` that `network` has by the same name in the same shape, and returns their share of it.

    InputError where there are none, or no weights.
    """
    path = folder / "diffusion_pytorch_model.safetensors"
    if not path.is_file():
        raise InputError(f"teacher_training.autoencoder.initial={folder}: there is no {path}.")
    given = load_file(path)
    equal = [(own, given[name]) for name, own in network.named_parameters() if name in given and own.shape == given[name].shape]
    if not equal:
        raise InputError(f"teacher_training.autoencoder.initial={folder}: no weight there has the name and shape of one here.")
    for own, weight in equal:
        own.copy_(weight)
    return sum(own.numel() for own, _ in equal) / count_parameters(network)
