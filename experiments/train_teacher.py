"""Trains a small teacher on real data: autoencoder, then text encoder and denoiser together.

    python -m experiments.train_teacher task=t2i
    python -m experiments.train_teacher task=t2i start=teachers/emoji_t2i     train on from a finished teacher's weights

Each stage leaves its result in `work`; a killed run, started again, goes on from its last checkpoint and ends with
the weights of an uninterrupted one.
"""

import json
from collections import deque
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from experiments.command_line import one_line_errors


def train_autoencoder(cfg: DictConfig, images: Any, work: Path) -> Any:
    """The trained autoencoder with normalised latents, from `work` if it is there."""
    import torch
    from diffusers import AutoencoderKL

    from common.batches import TensorRows
    from common.schedules import scheduler as learning_rate
    from common.training import fit
    from experiments.autoencoder_training import AutoencoderTraining, encode_images, normalize_latents

    finished = work / "vae"
    if not (finished / "config.json").is_file():
        settings = cfg.teacher_training.autoencoder
        torch.manual_seed(cfg.seed)
        if cfg.start is None:
            autoencoder = hydra.utils.instantiate(settings.network, _convert_="all").train()
        else:
            autoencoder = AutoencoderKL.from_pretrained(Path(cfg.start) / "vae", torch_dtype=torch.float32).train()
        module = AutoencoderTraining(
            autoencoder,
            hydra.utils.instantiate(settings.optimizer),
            learning_rate(**settings.schedule, steps=settings.steps),
            settings.kl_weight,
            cfg.seed,
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
        normalize_latents(autoencoder, encode_images(autoencoder, images))
        save_whole(autoencoder, finished)
    return AutoencoderKL.from_pretrained(finished, low_cpu_mem_usage=False).eval()


def save_whole(part: Any, folder: Path) -> None:
    """part.save_pretrained(folder), whole or not at all, without the path that the part was once loaded from."""
    from common.files import whole_folder
    from common.teachers import forget_origins

    with whole_folder(folder) as scratch:
        part.save_pretrained(scratch)
        forget_origins(scratch)


def check_work(cfg: DictConfig, work: Path) -> None:
    """InputError when `work` was begun with other settings; the number of steps and how often to save may change."""
    from common.errors import InputError
    from common.files import write_json

    settings = OmegaConf.to_container(cfg, resolve=True)
    begun = {"seed": settings["seed"], "start": settings["start"], **settings["teacher_training"]}
    for name in ("checkpoint_every", "sample_every", "trainer"):
        begun.pop(name)
    for part in ("autoencoder", "denoiser"):
        begun[part].pop("steps")
    path = work / "settings.json"
    if not path.is_file():
        write_json(path, begun)
    elif json.loads(path.read_text()) != begun:
        raise InputError(f"{work} was begun with other settings ({path}); delete it, or give work=<another folder>.")


def train_denoiser(
    cfg: DictConfig, latents: Any, captions: list[str], autoencoder: Any, work: Path
) -> tuple[Any, Any, Any, Any, float | None]:
    """The trained denoiser and text encoder (averaged weights), tokenizer, scheduler and mean loss of the last 200 steps."""
    import lightning as L
    import torch
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    from common.batches import TensorRows
    from common.distillation import DenoiserTraining
    from common.schedules import scheduler as learning_rate
    from common.training import ExponentialAverage, fit
    from experiments.text_encoder import build_text_encoder, train_tokenizer

    settings, text = cfg.teacher_training.denoiser, cfg.teacher_training.text_encoder
    torch.manual_seed(cfg.seed)
    if cfg.start is None:
        if not (work / "tokenizer" / "tokenizer.json").is_file():
            train_tokenizer(captions, text.vocabulary_size, text.max_length).save_pretrained(work / "tokenizer")
        tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
        text_encoder = build_text_encoder(tokenizer, text.width, text.layers, text.heads)
        denoiser = hydra.utils.instantiate(settings.network, _convert_="all")
    else:
        tokenizer = CLIPTokenizer.from_pretrained(Path(cfg.start) / "tokenizer")
        text_encoder = CLIPTextModel.from_pretrained(Path(cfg.start) / "text_encoder", torch_dtype=torch.float32)
        denoiser = UNet2DConditionModel.from_pretrained(Path(cfg.start) / "unet", torch_dtype=torch.float32)
    text_encoder.train()
    denoiser.train()
    scheduler = hydra.utils.instantiate(settings.scheduler)

    def tokenize(texts: list[str]) -> torch.Tensor:
        return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids

    module = DenoiserTraining(
        denoiser,
        scheduler,
        hydra.utils.instantiate(settings.optimizer),
        learning_rate(**settings.schedule, steps=settings.steps),
        cfg.seed,
        condition_dropout=settings.condition_dropout,
        empty_condition=tokenize([""])[0],
        text_encoder=text_encoder,
    )
    average = ExponentialAverage(torch.nn.ModuleList([denoiser, text_encoder]), settings.ema_decay)

    losses: deque[float] = deque(maxlen=200)

    class SampleSheets(L.Callback):
        """A sheet of samples of the averaged weights every `sample_every` steps, and the last losses."""

        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            losses.append(float(trainer.callback_metrics["loss"]))
            if trainer.global_step % cfg.teacher_training.sample_every == 0:
                average.ema.store(average.network.parameters())
                average.copy_to_network()
                write_sample_sheet(
                    cfg,
                    denoiser,
                    text_encoder,
                    tokenize,
                    scheduler,
                    autoencoder,
                    captions,
                    work / f"samples_{trainer.global_step:06d}.png",
                )
                average.ema.restore(average.network.parameters())

    fit(
        module,
        TensorRows(latents=latents, input_ids=tokenize(captions)),
        steps=settings.steps,
        batch_size=settings.batch_size,
        seed=cfg.seed,
        folder=work / "denoiser",
        description="text encoder, denoiser",
        checkpoint_every=cfg.teacher_training.checkpoint_every,
        trainer=OmegaConf.to_container(cfg.teacher_training.trainer),
        callbacks=[average, SampleSheets()],
    )
    average.copy_to_network()
    return denoiser.eval(), text_encoder.eval(), tokenizer, scheduler, sum(losses) / len(losses) if losses else None


def write_sample_sheet(
    cfg: DictConfig,
    denoiser: Any,
    text_encoder: Any,
    tokenize: Any,
    scheduler: Any,
    autoencoder: Any,
    captions: list[str],
    path: Path,
) -> None:
    """Sixty-four samples of evenly spaced training captions, eight a row."""
    import torch

    from common.pictures import save_grid
    from common.sampling import sample_latents

    chosen = captions[:: max(1, len(captions) // 64)][:64]
    settings = cfg.teacher_training
    with torch.no_grad():
        device = next(text_encoder.parameters()).device
        states = text_encoder(tokenize([*chosen, ""]).to(device)).last_hidden_state.cpu()
        latents = sample_latents(
            denoiser,
            scheduler,
            (settings.denoiser.network.in_channels, *[settings.denoiser.network.sample_size] * 2),
            list(range(len(chosen))),
            {"encoder_hidden_states": states[:-1]},
            {"encoder_hidden_states": states[-1:]},
            settings.inference_steps,
            settings.guidance_scale,
            batch_size=64,
        )
        images = autoencoder.decode(latents).sample
    save_grid(images, path, columns=8)


@hydra.main(version_base="1.3", config_path="../conf", config_name="train_teacher")
@one_line_errors
def main(cfg: DictConfig) -> None:
    import torch

    from common.files import write_json
    from experiments.autoencoder_training import encode_images, peak_signal_to_noise
    from experiments.caches import cached_tensors

    work, out = Path(cfg.work), Path(cfg.out)
    check_work(cfg, work)
    settings = cfg.teacher_training
    training = hydra.utils.instantiate(settings.data, split="train")
    held_out = hydra.utils.instantiate(settings.data, split="test")
    autoencoder = train_autoencoder(cfg, training.images, work)
    print(f"autoencoder: held-out reconstructions {peak_signal_to_noise(autoencoder, held_out.images):.2f} dB PSNR")
    rows = cached_tensors(work / "latents.safetensors", lambda: {"tensor": encode_images(autoencoder, training.images)})
    denoiser, text_encoder, tokenizer, scheduler, last_loss = train_denoiser(
        cfg, rows["tensor"], training.captions, autoencoder, work
    )
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        autoencoder, text_encoder, tokenizer, denoiser, scheduler, None, None, requires_safety_checker=False
    )
    earlier = [] if cfg.start is None else json.loads((Path(cfg.start) / "training.json").read_text())
    save_whole(pipeline.to(dtype=torch.float16), out)
    history = {
        "images": len(training),
        "autoencoder steps": settings.autoencoder.steps,
        "autoencoder batch": settings.autoencoder.batch_size,
        "denoiser steps": settings.denoiser.steps,
        "denoiser batch": settings.denoiser.batch_size,
        **({} if last_loss is None else {"last denoiser loss": round(last_loss, 4)}),
    }
    write_json(out / "training.json", [*earlier, history])
    print(f"teacher: {out}")


if __name__ == "__main__":
    main()
