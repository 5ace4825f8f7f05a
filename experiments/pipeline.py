"""One job from configuration to result row: plan, prune, distil, measure, show."""

import functools
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from common.errors import InputError
from experiments.jobs import job_settings

GROUPS = ("task", "scale", "teacher", "method", "distill", "experiment")


def pick_device(name: str) -> str:
    """The device of cfg.device; "auto" takes the first CUDA device where there is one."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return name


@contextmanager
def stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Adds the time spent inside to seconds[name]."""
    started = time.perf_counter()
    yield
    seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - started, 1)


def calibrate(cfg: DictConfig, teacher: Any, cache: Path) -> Any:
    """The calibration set: a seeded draw of training captions (no captions for unconditional models), and training rows."""
    import hydra
    import torch

    from common.batches import generator_for
    from common.calibration import build_calibration
    from experiments.alignment import CaptionAlignment

    settings = OmegaConf.to_container(cfg.calibration, resolve=True)
    data_rows = settings.pop("data_rows")
    data = hydra.utils.instantiate(cfg.task.data, split="train")
    order = torch.randperm(len(data), generator=generator_for(settings["seed"], 4)).tolist()
    captioned = teacher.text_encoder is not None
    if captioned and not hasattr(data, "captions"):
        raise InputError(f"The teacher {teacher.name} takes captions, and the data of task={cfg.task.name} has none.")

    def training_rows() -> tuple[Any, dict[str, Any]]:
        chosen = order[: max(0, data_rows)]
        if not chosen:
            raise InputError(f"calibration.data_rows={data_rows}: at least 1 is needed.")
        latents = teacher.encode_images(data.images[chosen], cfg.evaluation.batch_size).to(teacher.device)
        return latents, teacher.encode_captions([data.captions[i] for i in chosen]) if captioned else {}

    chosen = order[: max(0, settings["num_conditions"])] if captioned else []
    if captioned and not chosen:
        raise InputError(f"calibration.num_conditions={settings['num_conditions']}: at least 1 is needed.")
    settings["num_conditions"] = len(chosen) or 1  # without captions one implicit condition (LD-Pruner, section 2.4)
    return build_calibration(
        teacher.encode_captions([data.captions[i] for i in chosen]) if captioned else {},
        teacher.empty_condition(),
        teacher.latent_shape,
        teacher.scheduler,
        **settings,
        data=functools.cache(training_rows),
        alignment=CaptionAlignment(cfg, teacher, [data.names[i] for i in chosen], cache) if captioned else None,
    )


def run_job(cfg: DictConfig) -> dict[str, Any]:
    """Runs or finds the job of `cfg` and returns its result row, as written to result.json."""
    import json

    from hydra.core.hydra_config import HydraConfig

    from common.files import write_json
    from experiments.job_report import print_table

    folder = Path(HydraConfig.get().runtime.output_dir)
    settings = job_settings(cfg)
    path = folder / "result.json"
    if path.is_file():
        try:
            row = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise InputError(f"{path} is damaged ({error}); delete it and the job ends anew.") from error
        print(f"This job is done: {path} (delete the folder to run it again).")
        print_table(row)
        return row
    hydra_config = HydraConfig.get()
    made_by = {
        "command": shlex.join(["python", "run.py", *hydra_config.overrides.task]),
        "choices": {name: hydra_config.runtime.choices.get(name) for name in GROUPS},
    }
    row = {"settings": settings, **made_by, **compute_row(cfg, folder)}
    write_json(path, row)
    print_table(row)
    print(f"\nresult {path}\npictures samples.png, plan.png beside it\nstudent {folder / 'student'}")
    return row


def compute_row(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """All stages of a job; each finds what an interrupted run has left in `folder` and goes on from there."""
    import hydra
    import torch

    from common.masks import apply_masks, plan_masks
    from common.plans import PLAN_FILE, Plan, apply_plan, has_masks
    from common.teachers import load_denoiser, load_teacher, save_student
    from experiments.distill_student import distill
    from experiments.evaluate import evaluate, evaluation_prompts, measure_cost
    from experiments.job_report import draw_samples, draw_scores
    from experiments.plan_picture import draw_plan

    if cfg.init not in ("preserved", "scratch"):
        raise InputError(f"init={cfg.init!r} is neither 'preserved' nor 'scratch'.")
    prompts = evaluation_prompts(cfg)  # before the long work: its settings may be wrong
    seconds: dict[str, float] = {}
    cache = Path(cfg.outputs) / "cache"
    method = hydra.utils.instantiate(cfg.method, _convert_="all")
    with stage("loading", seconds):
        teacher = load_teacher(cfg.teacher.path, cfg.teacher.revision).to(pick_device(cfg.device))
        calibration = calibrate(cfg, teacher, cache).to(teacher.device)
    with stage("scoring", seconds):
        if not (folder / "plan" / PLAN_FILE).is_file():
            method.plan(teacher.denoiser, calibration, teacher.fingerprint(), cache / "scores").save(folder / "plan")
        plan = Plan.load(folder / "plan")
        if plan.teacher != teacher.fingerprint():
            raise InputError(f"{folder} was begun with another teacher in {teacher.folder}; delete it to start anew.")
    pruned = apply_plan(teacher.denoiser, plan)
    if cfg.init == "scratch":
        torch.manual_seed(cfg.seed)
        pruned = type(pruned).from_config(pruned.config).to(teacher.device).eval()
        if has_masks(plan.edits):
            apply_masks(pruned, plan_masks(plan.edits, plan.tensors))
    models = {"teacher": teacher, "pruned": teacher.with_parts(denoiser=pruned)}
    student_folder = folder / "student"
    with stage("distilling", seconds):
        if not (student_folder / "model_index.json").is_file():
            student = apply_plan(teacher.denoiser, plan)
            student.load_state_dict(pruned.state_dict())
            if cfg.distill.steps:
                bring = getattr(method, "training_callbacks", None)
                callbacks = bring(student, plan) if bring else []
                student = distill(cfg, teacher, student, folder / "distill", cache, callbacks)
            save_student(teacher, student, student_folder)
        if cfg.distill.steps:
            models["distilled"] = teacher.with_parts(denoiser=load_denoiser(student_folder).to(teacher.device))
    with stage("measuring", seconds):
        metrics, images = evaluate(cfg, models, prompts, folder / "samples", cache)
        costs = measure_cost(cfg, models)
    with stage("drawing", seconds):
        draw_samples(folder, images, prompts[0])
        draw_scores(teacher.denoiser, plan, folder / "scores.png")
        draw_plan(teacher.denoiser, plan, folder / "plan.png")
    return {
        "models": {who: {**metrics.get(who, {}), **costs.get(who, {})} for who in ("real", *models)},
        "plan": [edit.to_dict() for edit in plan.edits],
        "reached": {name: value for name, value in plan.settings.items() if name.endswith("_reached")},
        "protocol": {
            "extractor": "effnet: EfficientNet-lite0, 1280 pooled features, at the images' own size",
            **OmegaConf.to_container(cfg.evaluation, resolve=True),
            **({} if prompts[1] is not None else {"guidance_scale": None}),  # nothing to guide by without captions
            "seeds": "one per sample, from (seed, index)",
        },
        "seconds": seconds,
        "environment": environment(teacher.device),
    }


def environment(device: Any) -> dict[str, Any]:
    """Where the job ran: versions, device, and the largest memory so far (MiB)."""
    import platform

    import diffusers
    import lightning
    import torch
    import transformers

    from common.cost import peak_memory_mib

    packages = {module.__name__: module.__version__ for module in (torch, diffusers, transformers, lightning)}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "packages": packages,
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
        "peak_memory_mib": round(peak_memory_mib()),
    }
