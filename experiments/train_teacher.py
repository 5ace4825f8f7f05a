"""Trains a small teacher on real data: autoencoder, then denoiser, together with a text encoder where the task has text.

    python -m experiments.train_teacher task=t2i
    python -m experiments.train_teacher task=uig
    python -m experiments.train_teacher task=t2i start=teachers/emoji_t2i     train on from a finished teacher's weights
    python -m experiments.train_teacher task=t2i autoencoder=teachers/emoji_t2i    another denoiser for its autoencoder

Each stage leaves its result in `work`; a killed run, started again, goes on from its last checkpoint and ends with
the weights of an uninterrupted one.
"""

import shutil
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from common.runtime.progress import under_way
from experiments.shared.command_line import one_line_composition_errors, one_line_errors
from experiments.shared.job_id import register_job_folder

register_job_folder()


def check_work(cfg: DictConfig, work: Path) -> None:
    """InputError when `work` was begun with other settings; the number of steps and how often to save may change."""
    from common.errors import InputError
    from common.runtime.files import write_json
    from common.runtime.strict_json import read_json

    settings = OmegaConf.to_container(cfg, resolve=True)
    begun = {name: settings[name] for name in ("seed", "start", "autoencoder")} | settings["teacher_training"]
    for name in ("checkpoint_every", "sample_every", "trainer"):
        begun.pop(name)
    for part in ("autoencoder", "denoiser"):
        begun[part].pop("steps")
    path = work / "settings.json"
    if not path.is_file():
        write_json(path, begun)
    elif read_json(path, f"delete {work}, or give work=<another folder>") != begun:
        raise InputError(f"{work} was begun with other settings ({path}); delete it, or give work=<another folder>.")


@hydra.main(version_base="1.3", config_path="../conf", config_name="train_teacher")
@one_line_errors
@under_way("training a teacher")
def main(cfg: DictConfig) -> None:
    import torch

    from common.diffusion.images import save_grid, upright
    from common.diffusion.latents import encode_images
    from common.metrics.similarity import peak_signal_to_noise, reconstruct_images
    from common.models.saving import save_whole
    from common.runtime.files import check_writable, write_json
    from common.runtime.processes import pick_device, refuse_others
    from common.runtime.strict_json import read_json
    from experiments.shared.settings import typed_settings
    from experiments.shared.tensor_cache import cached_tensors
    from experiments.teacher_training.autoencoder_training import train_autoencoder
    from experiments.teacher_training.denoiser_training import train_denoiser

    refuse_others("experiments.train_teacher")
    work, out = Path(cfg.work), Path(cfg.out)
    check_writable(out.absolute().parent, "out")
    check_work(cfg, work)
    training = typed_settings(cfg)
    settings = training.teacher_training
    with under_way("reading the data"):
        data = hydra.utils.instantiate(settings.data, split="train")
        held_out = hydra.utils.instantiate(settings.data, split="test").images
    device = pick_device("cpu" if settings.trainer.get("accelerator") == "cpu" else "auto")
    autoencoder = train_autoencoder(training, data.images, work).to(device)
    with under_way("reconstructing held-out images"):
        decibels = peak_signal_to_noise(autoencoder, held_out)
    print(f"autoencoder: held-out reconstructions {decibels:.2f} dB PSNR", flush=True)
    shown = held_out[:: max(1, len(held_out) // 32)][:32].split(8)
    pairs = [sheet for chunk in shown for sheet in (chunk.float() / 127.5 - 1, reconstruct_images(autoencoder, chunk))]
    save_grid(upright(torch.cat(pairs), training.task.sound), work / "reconstructions.webp", columns=8)
    with under_way("encoding images"):
        rows = cached_tensors(work / "latents.safetensors", lambda: {"tensor": encode_images(autoencoder, data.images).cpu()})
    parts, last_loss = train_denoiser(training, rows["tensor"], data, autoencoder, work)
    pipeline = hydra.utils.instantiate(settings.pipeline)(**{settings.autoencoder.part: autoencoder}, **parts)
    earlier, first = [], settings.denoiser.initial_weights
    told = "PyTorch's" if first is None else f"PyTorch's x {first.gain:.4g}, columns of skip connections x {first.skips:g}"
    begun = {"first weights": told}
    if training.start is not None:
        earlier, begun = read_json(Path(training.start) / "training.json", "give another start=<teacher>", None), {}
    save_whole(pipeline.to(dtype=torch.float16), out)
    for picture in ("samples.webp", "reconstructions.webp"):
        shutil.copyfile(work / picture, out / picture)
    history = {
        "images": len(data),
        "autoencoder steps": settings.autoencoder.steps,
        "autoencoder batch": settings.autoencoder.batch_size,
        "held-out PSNR": round(decibels, 2),
        "denoiser steps": settings.denoiser.steps,
        "denoiser batch": settings.denoiser.batch_size,
        **begun,
        **({} if last_loss is None else {"last denoiser loss": round(last_loss, 4)}),
    }
    write_json(out / "training.json", [*earlier, history])
    print(f"teacher: {out}")


if __name__ == "__main__":
    with one_line_composition_errors():
        main()
