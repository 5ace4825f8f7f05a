"""The planning stage of a job: what is calibrated on, the plan of each part, and the pruned pipeline."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from common.errors import InputError


def training_order(cfg: DictConfig, data: Any) -> list[int]:
    """A seeded order of the training images, from whose start calibration takes its rows."""
    import torch

    from common.runtime.seeding import generator_for

    return torch.randperm(len(data), generator=generator_for(cfg.calibration.seed, 4)).tolist()


def calibrate(cfg: DictConfig, teacher: Any, cache: Path) -> Any:
    """The calibration set: a seeded draw of training captions (no captions for unconditional models), and training rows."""
    import hydra

    from common.diffusion.sampling import with_guidance
    from common.scoring.calibration import build_calibration
    from experiments.evaluation.alignment import CaptionAlignment
    from experiments.training.cached_latents import check_captions

    settings = OmegaConf.to_container(cfg.calibration, resolve=True)
    data_rows = settings.pop("data_rows")
    data = hydra.utils.instantiate(cfg.task.data, split="train")
    order = training_order(cfg, data)
    captioned = teacher.text_encoder is not None
    check_captions(cfg, teacher, data)

    def training_rows() -> tuple[Any, dict[str, Any]]:
        chosen = order[:data_rows]
        latents = teacher.encode_images(data.images[chosen], cfg.evaluation.batch_size).to(teacher.device)
        return latents, teacher.encode_captions([data.captions[i] for i in chosen]) if captioned else {}

    chosen = order[: settings["num_conditions"]] if captioned else []
    named = captioned and data.names is not None
    settings["num_conditions"] = len(chosen) or 1  # without captions one implicit condition (LD-Pruner, section 2.4)
    conditions = teacher.encode_captions([data.captions[i] for i in chosen]) if captioned else {}
    return build_calibration(
        with_guidance(teacher.denoiser, conditions, settings["guidance_scale"]),
        teacher.empty_condition(),
        teacher.latent_shape,
        teacher.scheduler,
        **settings,
        data=functools.cache(training_rows),
        alignment=CaptionAlignment(cfg, teacher, [data.names[i] for i in chosen], cache) if named else None,
    )


def kept_plan(folder: Path, teacher: Any, make: Callable[[], Any]) -> Any:
    """The plan in `folder`, made when it is not there; InputError when it is of another teacher."""
    from common.pruning.plan import PLAN_FILE, Plan
    from common.runtime.collectives import on_first

    if not on_first(lambda: (folder / PLAN_FILE).is_file()):
        made = make()
        on_first(lambda: made.save(folder))
    plan = Plan.load(folder)
    if plan.teacher != teacher.fingerprint():
        raise InputError(f"{folder.parent} was begun with another teacher in {teacher.folder}; delete it to start anew.")
    return plan


def make_plans(cfg: DictConfig, teacher: Any, method: Any, folder: Path, cache: Path) -> dict[str, Any]:
    """The plan of each part that is pruned: the denoiser's, and the autoencoder's where the method prunes it."""
    import hydra

    from common.runtime.collectives import first_enters
    from common.runtime.content import content_name
    from common.runtime.locks import locked
    from experiments.shared.precision import inference_autocast, precision_suffix

    calibration = calibrate(cfg, teacher, cache).to(teacher.device)
    known = teacher.fingerprint()
    scores = cache / f"scores{precision_suffix(cfg)}"

    def denoiser_plan() -> Any:
        shared = scores / f".{content_name(type(method).__name__, known)}.lock"  # by the jobs whose scores may be the same
        lock = functools.partial(locked, shared, f"scores are being computed in {scores}")
        with first_enters(lock), inference_autocast(cfg, teacher.device):
            return method.plan(teacher.denoiser, calibration, known, scores)

    plans = {"denoiser": kept_plan(folder / "plan", teacher, denoiser_plan)}
    if "autoencoder" in method.pruned_parts:
        data = hydra.utils.instantiate(cfg.task.data, split="train")
        images = data.images[training_order(cfg, data)[: cfg.calibration.data_rows]]
        plans["autoencoder"] = kept_plan(
            folder / "autoencoder_plan", teacher, lambda: method.autoencoder_plan(teacher.autoencoder, images, known)
        )
    return plans


def prune(cfg: DictConfig, teacher: Any, plans: dict[str, Any]) -> Any:
    """The pipeline with its pruned parts; init=scratch gives the denoiser random weights."""
    import torch

    from common.pruning.masks import apply_masks, plan_masks
    from common.pruning.plan import apply_plan, has_masks

    parts = {part: apply_plan(getattr(teacher, part), plan) for part, plan in plans.items()}
    if cfg.init == "scratch":
        torch.manual_seed(cfg.seed)
        denoiser, plan = parts["denoiser"], plans["denoiser"]
        parts["denoiser"] = type(denoiser).from_config(denoiser.config).to(teacher.device).eval()
        if has_masks(plan.edits):
            apply_masks(parts["denoiser"], plan_masks(plan.edits, plan.tensors))
    return teacher.with_parts(**parts)
