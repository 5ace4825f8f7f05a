"""One job from configuration to result row: plan, prune, distil, measure, show."""

import copy
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from common.errors import InputError, first_line
from experiments.job.preparation import Prepared, empty_folder_goes, prepare
from experiments.reporting.rows import CHOICES, read_row
from experiments.shared.job_id import job_settings
from experiments.shared.stages import stage


def run_job(cfg: DictConfig) -> dict[str, Any]:
    """Runs or finds the job of `cfg` and returns its result row, as written to result.json."""
    from hydra.core.hydra_config import HydraConfig

    from common.runtime.collectives import join
    from common.runtime.processes import pick_device

    folder = Path(HydraConfig.get().runtime.output_dir)
    with empty_folder_goes(folder):
        join(pick_device(cfg.device))
    ready = partial(prepare, cfg, folder)
    return found_or_made(folder, partial(find_row, cfg), ready, partial(new_row, cfg))


def found_or_made(
    folder: Path,
    find: Callable[[Path], dict[str, Any] | None],
    ready: Callable[[], Any],
    make: Callable[[Path, Any], dict[str, Any]],
) -> dict[str, Any]:
    """The row that `find` finds in `folder`, or else that of `make`, which no other job's process runs there meanwhile.

    `make` gets what `ready` returns, which is called first: what it refuses is told before any wait for another process.
    InputError when another one does already; a job of a sweep waits for its row instead. The processes of one job find it, or
    make it, together.
    """
    from common.runtime.collectives import first_enters, on_first
    from common.runtime.files import check_writable
    from common.runtime.locks import claimed
    from experiments.sweeps.sweep import sweep_folder

    row = on_first(lambda: find(folder))
    if row is None:
        on_first(lambda: check_writable(folder, "outputs"))
        prepared = ready()
        with first_enters(lambda: claimed(folder, wait=sweep_folder() is not None)):
            row = on_first(lambda: find(folder)) or make(folder, prepared)
    return row


def find_row(cfg: DictConfig, folder: Path) -> dict[str, Any] | None:
    """The row of a finished job, which is shown; None where there is none yet.

    What it lacks of cfg.metrics is measured over the samples that the job has kept, and the row written anew.
    """
    from common.runtime.files import write_json
    from experiments.reporting.job_report import print_table

    path = folder / "result.json"
    if not path.is_file():
        return None
    row = read_row(path, "delete it and the job ends anew")
    print(f"This job is done: {path} (delete the folder to run it again).")
    if add_to_row(cfg, row, folder):
        write_json(path, row)
    print_table(row)
    return row


def new_row(cfg: DictConfig, folder: Path, prepared: Prepared) -> dict[str, Any]:
    """Runs the job and writes its row; the first of several processes does, with what all have computed."""
    from hydra.core.hydra_config import HydraConfig

    from common.runtime.collectives import on_first
    from experiments.sweeps.wandb_run import tracking

    hydra_config = HydraConfig.get()
    made_by = {
        "command": shlex.join(["python", "run.py", *hydra_config.overrides.task]),
        "choices": {name: hydra_config.runtime.choices.get(name) for name in CHOICES},
    }
    with tracking(cfg, folder) as tracker:
        finish = compute(cfg, folder, prepared, tracker)
        return on_first(lambda: write_row(folder, {"settings": job_settings(cfg), **made_by, **finish()}))


def write_row(folder: Path, row: dict[str, Any]) -> dict[str, Any]:
    """Writes result.json, and prints the table and where to look."""
    from common.runtime.files import write_json
    from experiments.reporting.job_report import print_table

    path = folder / "result.json"
    write_json(path, row)
    print_table(row)
    shown = ", ".join(picture.name for picture in sorted(folder.glob("*.png")))
    print(f"\nresult {path}\npictures beside it: {shown}\nstudent {folder / 'student'}")
    return row


def add_to_row(cfg: DictConfig, row: dict[str, Any], folder: Path) -> bool:
    """Measures what a finished job's row lacks of cfg.metrics; whether the row has changed."""
    from common.models.loading import load_teacher
    from common.runtime.processes import pick_device
    from experiments.evaluation.paper_metrics import lacking, measure_into
    from experiments.evaluation.prompts import evaluation_prompts
    from experiments.shared.out_of_memory import memory_advice

    if not cfg.metrics or not lacking(cfg, row):
        return False
    before = copy.deepcopy(row)
    teacher = load_teacher(cfg.teacher.path, cfg.teacher.revision, cfg.teacher.config)
    models = [who for who in row["models"] if who != "real"]
    prompts = evaluation_prompts(cfg)[0]
    with memory_advice("metrics", cfg):
        measure_into(cfg, row, models, teacher.fingerprint(), prompts, folder, pick_device(cfg.device))
    return before != row


def kept_student(teacher: Any, folder: Path) -> Any:
    """The student that the job has saved; InputError with the remedy when its folder is damaged."""
    from common.models.saving import load_student

    try:
        return load_student(teacher, folder)
    except (InputError, OSError, LookupError, AttributeError, StopIteration) as error:
        told = first_line(error).rstrip(".")
        raise InputError(f"{folder} is damaged ({told}); delete it and the student is trained anew.") from error


def compute(cfg: DictConfig, folder: Path, prepared: Prepared, tracker: Any) -> Callable[[], dict[str, Any]]:
    """The stages of a job that its processes share; each finds what an interrupted run has left in `folder` and goes on there.

    tracker: the job's W&B run, or None. Returns what is left for one process to do: measure speeds, draw, put the row together.
    """
    from common.models.saving import save_student
    from common.runtime.collectives import barrier, on_first
    from common.training.fit import drop_checkpoints
    from experiments.evaluation.evaluate import evaluate
    from experiments.job.planning import make_plans, prune
    from experiments.job.result_row import result_row
    from experiments.shared.tensor_cache import cache_folder
    from experiments.sweeps.wandb_run import loggers
    from experiments.training.train_student import train_student

    teacher, method, prompts = prepared.teacher, prepared.method, prepared.prompts
    seconds = dict(prepared.seconds)
    cache = cache_folder(cfg)
    with stage("scoring", seconds, cfg):
        plans = make_plans(cfg, teacher, method, folder, cache)
    models = {"teacher": teacher, "pruned": prune(cfg, teacher, plans)}
    trains = bool(cfg.distill.steps or ("autoencoder" in plans and cfg.distill.autoencoder.steps))
    with stage("distilling", seconds, cfg):
        if not on_first(lambda: (folder / "student" / "model_index.json").is_file()):
            student = models["pruned"]
            if trains:
                work = folder / "distill"
                student = train_student(cfg, teacher, student, plans, method, prompts[0], work, cache, loggers(tracker))
            on_first(lambda: save_student(teacher, student, folder / "student"))
        on_first(lambda: drop_checkpoints(folder / "distill"))  # of a run that was killed before it came to this, too
        if trains:
            models["distilled"] = kept_student(teacher, folder / "student").to(teacher.device)
    with stage("measuring", seconds, cfg):
        metrics, images = evaluate(cfg, models, prompts, folder / "samples", cache)
        by_steps = {}
        for steps in cfg.evaluation.more_steps:
            changed = OmegaConf.merge(cfg, {"evaluation": {"steps": steps}})
            by_steps[str(steps)], _ = evaluate(changed, models, prompts, folder / "samples" / f"steps={steps}", cache)
    barrier()  # no other process computes while speeds are measured
    found = {"models": metrics, "by_steps": by_steps, "seconds": seconds}
    return lambda: result_row(cfg, folder, tracker, models, plans, prompts, images, found)
