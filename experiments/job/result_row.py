"""The row of a finished job: costs measured, pictures drawn, everything put together."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from common.runtime.strict_json import read_json
from experiments.shared.stages import stage


def result_row(
    cfg: DictConfig,
    folder: Path,
    tracker: Any,
    models: dict[str, Any],
    plans: dict[str, Any],
    prompts: tuple[list[str], list[str] | None],
    images: dict[str, Any],
    found: dict[str, Any],
) -> dict[str, Any]:
    """The row of a job, with costs measured and pictures drawn. found: metrics by model, by_steps, and seconds by stage."""
    from experiments.evaluation.measure_cost import measure_cost
    from experiments.evaluation.paper_metrics import measure_into
    from experiments.job.sparse_student import export_sparse, masked_parts
    from experiments.shared.environment import environment
    from experiments.sweeps.wandb_run import log_result, log_student
    from experiments.training.distance_curve import read_curve

    teacher, last, seconds, plan = models["teacher"], list(models)[-1], found["seconds"], plans["denoiser"]
    with stage("measuring", seconds, cfg):
        costs = measure_cost(cfg, models, plans)
        masked = masked_parts(models[last], plans)
        sparse_files = export_sparse(masked, folder / "sparse")
    with stage("drawing", seconds, cfg):
        drawn = draw_job(cfg, folder, teacher, plans, masked, images, prompts[0])
    row = {
        "models": {who: {**found["models"].get(who, {}), **costs.get(who, {})} for who in ("real", *models)},
        "plan": [edit.to_dict() for edit in plan.edits],
        "reached": {name: value for name, value in plan.settings.items() if name.endswith("_reached")},
        "by_steps": found["by_steps"],
        "curve": read_curve(folder / "distill" / "curve"),
        "protocol": protocol_of(cfg, any(prompts[0])),
        "seconds": seconds,
        "environment": environment(teacher.device),
    }
    if cfg.metrics:
        with stage("metrics", seconds, cfg):
            measure_into(cfg, row, list(models), teacher.fingerprint(), prompts[0], folder, teacher.device)
    if sparse_files:
        row["models"][last]["sparse_file"] = sparse_files
    add_training(row, folder / "distill")
    if tracker is not None:
        tracker.attempt(lambda run: log_result(run, row, plan, drawn, prompts[0]))
        if cfg.wandb.log_student:
            tracker.attempt(lambda run: log_student(run, folder / "student"))
    return row


def draw_job(
    cfg: DictConfig,
    folder: Path,
    teacher: Any,
    plans: dict[str, Any],
    masked: dict[str, Any],
    images: dict[str, Any],
    captions: list[str],
) -> dict[str, Any]:
    """Writes samples, plan, and scores or sparsity as pictures to `folder`, and sounds; returns the samples, upright.

    masked: the networks with masked weights; images: the first samples by model.
    """
    import hydra

    from common.audio.wav import write_sounds
    from common.diffusion.images import upright
    from experiments.job.sparse_student import draw_sparsity
    from experiments.reporting.job_report import draw_samples, draw_scores
    from experiments.reporting.plan_picture import draw_plan

    if cfg.task.sound is not None:
        write_sounds(folder / "sounds", images, hydra.utils.instantiate(cfg.task.sound))
    drawn = {who: upright(samples, cfg.task.sound) for who, samples in images.items()}
    draw_samples(folder / "samples.png", drawn, captions)
    draw_plan(teacher.denoiser, plans["denoiser"], folder / "plan.png")
    if masked:
        draw_sparsity(masked, plans, folder / "sparsity.png")
    else:
        draw_scores(teacher.denoiser, plans["denoiser"], folder / "scores.png")
    return drawn


def protocol_of(cfg: DictConfig, captioned: bool) -> dict[str, Any]:
    """How the figures of a row were measured."""
    import hydra

    from experiments.evaluation.samples import SEEDS

    return {
        "extractor": hydra.utils.get_class(cfg.task.features._target_).description,
        **OmegaConf.to_container(cfg.evaluation, resolve=True),
        **({} if captioned else {"guidance_scale": None}),  # nothing to guide by without captions
        "seeds": SEEDS[cfg.evaluation.seeds],
    }


def add_training(row: dict[str, Any], folder: Path) -> None:
    """What the method's callbacks told of the training in `folder`, where they did."""
    from experiments.training.train_student import REPORT

    if (folder / REPORT).is_file():
        row["training"] = read_json(folder / REPORT, f"delete {folder.parent} and run the job again")
        trained = row["training"].get("denoiser", {})
        row["reached"] |= {name: value for name, value in trained.items() if name.endswith("_reached")}
