"""Trains a teacher's autoencoder: pixels to latents and back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.nn import functional as F

from common.batches import TensorRows
from common.collectives import mean_over_processes
from common.cost import count_parameters
from common.errors import InputError
from common.finite import check_loss, check_weights
from common.latents import pixels_for
from common.schedules import scheduler as learning_rate
from common.student_folders import save_whole
from common.training import fit


class AutoencoderTraining(L.LightningModule):
    """L1 and squared error in pixels, and what the kind of autoencoder adds for its latents.

    Batches are dictionaries with `images`, uint8 (batch, 3, height, width), and `position` (common.batches).
    """

    def __init__(
        self,
        autoencoder: nn.Module,
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Callable[[torch.optim.Optimizer], Any],
        seed: int,
    ):
        super().__init__()
        self.autoencoder = autoencoder
        self.make_optimizer, self.make_schedule = optimizer, schedule
        self.seed = seed

    def reconstruct(self, images: torch.Tensor, positions: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Decoded images like `images`, and the weighted loss of the latents."""
        raise NotImplementedError

    def normalize_latents(self, latents: torch.Tensor) -> None:
        """Folds an affine map into the trained weights, so that latents are of zero mean and unit deviation over `latents`.

        The 1x1 convolutions on both sides of the latent space take it up: scaling_factor is 1, and every loader of
        diffusers decodes correctly without knowing of it.
        """
        raise NotImplementedError

    def training_step(self, batch: dict[str, torch.Tensor], batch_index: int) -> torch.Tensor:
        images = pixels_for(self.autoencoder, batch["images"])
        decoded, penalty = self.reconstruct(images, batch["position"].tolist())
        terms = {"l1": F.l1_loss(decoded, images), "mse": F.mse_loss(decoded, images), "latents": penalty}
        loss = sum(terms.values())
        values = mean_over_processes(torch.stack([loss, *terms.values()]).detach())
        terms = dict(zip(terms, values[1:], strict=True))
        check_loss(values[0], terms, self.global_step)
        self.log("loss", values[0], prog_bar=True)
        self.log_dict(terms)
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses to save weights that are not finite: the checkpoint before stays."""
        check_weights(self, self.global_step)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self.make_optimizer(self.parameters())
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.make_schedule(optimizer), "interval": "step"},
        }


def train_autoencoder(cfg: DictConfig, images: torch.Tensor, work: Path) -> nn.Module:
    """The trained autoencoder with normalised latents, from `work` if it is there; as it is in the folder cfg.autoencoder."""
    settings = cfg.teacher_training.autoencoder
    kind = hydra.utils.get_class(settings.network._target_)
    finished = work / settings.part
    if cfg.autoencoder is not None:
        finished = Path(cfg.autoencoder) / settings.part
        if not (finished / "config.json").is_file():
            raise InputError(f"autoencoder={cfg.autoencoder}: {finished} holds no autoencoder.")
    elif not (finished / "config.json").is_file():
        torch.manual_seed(cfg.seed)
        if cfg.start is None:
            autoencoder = hydra.utils.instantiate(settings.network, _convert_="all")
            if settings.initial is not None:
                taken = take_equal_weights(autoencoder, Path(settings.initial))
                print(f"autoencoder: {taken:.0%} of its parameters start as those of {settings.initial}", flush=True)
        else:
            autoencoder = kind.from_pretrained(Path(cfg.start) / settings.part, torch_dtype=torch.float32)
        module = hydra.utils.instantiate(settings.objective)(
            autoencoder.train(),
            hydra.utils.instantiate(settings.optimizer),
            learning_rate(**settings.schedule, steps=settings.steps),
            seed=cfg.seed,
        )
        fit(
            module,
            TensorRows(images=images),
            steps=settings.steps,
            batch_size=settings.batch_size,
            seed=cfg.seed,
            folder=work / "autoencoder",
            description="autoencoder",
            checkpoint_every=cfg.teacher_training.checkpoint_every,
            trainer=OmegaConf.to_container(cfg.teacher_training.trainer),
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
    from safetensors.torch import load_file

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


@torch.no_grad()
def encode_images(autoencoder: nn.Module, images: torch.Tensor, batch_size: int = 128) -> torch.Tensor:
    """Latents (count, channels, height, width) of uint8 images (count, 3, height, width): posterior means, or before
    quantisation."""
    chunks, device = [], next(autoencoder.parameters()).device
    for chunk in images.split(batch_size):
        encoded = autoencoder.encode(pixels_for(autoencoder, chunk.to(device)))
        chunks.append(encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents)
    return torch.cat(chunks)


@torch.no_grad()
def reconstruct_images(autoencoder: nn.Module, images: torch.Tensor, batch_size: int = 64) -> torch.Tensor:
    """What is left in [-1, 1] of uint8 images (count, 3, height, width) after encoding and decoding."""
    chunks = images.split(batch_size)
    decoded = [autoencoder.decode(encode_images(autoencoder, chunk)).sample.clamp(-1, 1).cpu() for chunk in chunks]
    return torch.cat(decoded)


@torch.no_grad()
def peak_signal_to_noise(autoencoder: nn.Module, images: torch.Tensor, batch_size: int = 64) -> float:
    """PSNR in dB of the reconstructions of uint8 images (count, 3, height, width), over all pixels at once."""
    squared, count = 0.0, 0
    for chunk in images.split(batch_size):
        pixels = pixels_for(autoencoder, chunk)
        squared += F.mse_loss(reconstruct_images(autoencoder, chunk, batch_size), pixels, reduction="sum").item()
        count += pixels.numel()
    return 10 * torch.log10(torch.tensor(4 * count / squared)).item()
