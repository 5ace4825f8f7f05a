"""What to do where a stage of a job does not fit into memory, told in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import InputError
from experiments.shared.settings import DistillationSettings, Settings

PER_PASS = ("rows", "batch_size", "copies", "weight_rows")  # settings of methods: what one forward pass holds


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the machine, had no memory left to give."""
    import torch

    told = str(error).lower()
    exhausted = "can't allocate memory" in told or "not enough memory" in told or "out of memory" in told
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (isinstance(error, RuntimeError) and exhausted)


def smaller(settings: Settings, stage: str) -> list[str]:
    """The settings that make a stage need less memory, with the values they have now."""
    at_once = settings.evaluation.micro_batch_size or settings.evaluation.batch_size
    if stage == "scoring":
        per_pass = [f"method.{name}={settings.method[name]}" for name in PER_PASS if settings.method.get(name)]
        return [*per_pass, f"evaluation.batch_size={settings.evaluation.batch_size}"]
    if stage == "encoding":
        return [f"training_rows.batch_size={settings.training_rows.batch_size}"]
    recipe = settings.distill
    if stage == "distilling" and isinstance(recipe, DistillationSettings):
        return [
            f"distill.batch_size={recipe.batch_size} (with distill.accumulate={recipe.accumulate} as much larger)",
            f"distill.gradient_checkpointing={str(recipe.gradient_checkpointing).lower()}",
            f"distill.trainer.precision={recipe.trainer['precision']}",
        ]
    if stage in ("measuring", "timing", "deployment"):
        return [f"evaluation.micro_batch_size={at_once}"]
    if stage == "metrics":
        return [
            f"metrics.{name}.batch_size={each['batch_size']}" for name, each in settings.metrics.items() if "batch_size" in each
        ]
    return []


DOING = {"metrics": "measuring metrics", "deployment": "measuring deployments"}
GOES_ON = "the job then goes on from what is done"  # by settings that are no part of its id
ANOTHER = "with other settings it is another job, from its start"
ADVICE = {
    "scoring": f"lower one of {{}}, or score with inference_precision=bf16; {ANOTHER}",
    "encoding": f"lower {{}}; {GOES_ON}",
    "distilling": f"lower the first of {{}}, checkpoint gradients (true), or train with bf16-mixed; {ANOTHER}. On more devices "
    "the same one goes on",
    "measuring": f"lower {{}}; {GOES_ON}",
    "timing": f"lower {{}}; {GOES_ON}",
    "deployment": f"lower {{}}; {GOES_ON}",
    "metrics": f"lower {{}}; {GOES_ON}",
}


@contextmanager
def memory_advice(stage: str, settings: Settings) -> Iterator[None]:
    """InputError naming the stage and the settings that help where memory runs out inside."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        found = smaller(settings, stage)
        without = f"free some, or take a device with more; {GOES_ON}"
        advice = ADVICE[stage].format(", ".join(found)) if found else without
        raise InputError(f"out of memory while {DOING.get(stage, stage)}: {advice}.") from error
